"""The test of momentum that sticks."""

from __future__ import annotations

from pathlib import Path

import pytest

from lionbits_bench import cli, sticking


def test_unbiased_rounding_follows_and_nearest_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = tmp_path / "new" / "sticking.png"
    assert cli.main(["sticking", "--steps", "200", "--chart", str(chart)]) == 0
    said = capsys.readouterr().out
    assert "| lionbits, 32 bits | 125 steps |" in said
    assert "| lionbits, 8 bits | 123 steps |" in said
    assert "| 8 bits, rounded to nearest | never |" in said
    assert "| QLion's rule, 4 bits | never |" in said
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_bitsandbytes_does_not_follow() -> None:
    pytest.importorskip("bitsandbytes", reason="a peer, which is optional")
    curve = sticking.follow("bitsandbytes", *sticking.optimizers()["bitsandbytes Lion8bit"], 200)
    assert curve.turned is None
    assert curve.means[sticking.BEFORE - 1] == pytest.approx(0.505, abs=0.01)
