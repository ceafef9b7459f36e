"""What docs/checkpoints.md shows is what happens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .pages import due, run


def test_its_code_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks, one after the other; then what they say about themselves."""
    pytest.importorskip("safetensors", reason="what the page writes")
    monkeypatch.chdir(tmp_path)
    (page,) = due(__file__)
    seen = run(page)
    weight, bias = seen["model"].parameters()
    assert torch.equal(seen["resumed"].momentum(weight), seen["optimizer"].momentum(weight))
    assert seen["narrow"].state[weight]["exp_avg_codes"].shape == (128, 256)
    assert torch.equal(seen["narrow"].momentum(bias), seen["optimizer"].momentum(bias))
    assert torch.equal(seen["codes"], seen["optimizer"].state[weight]["exp_avg_codes"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "optimizer.safetensors"]
