"""``run`` and ``compare``, tiny: what is written and reported, and which errors do not end it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from lionbits_bench import charts, cli, compare, report, rule, run, tables
from lionbits_bench.candidates import Candidate
from lionbits_bench.eager import EagerLion
from lionbits_bench.results import Results, Row

PNG = b"\x89PNG"


def bench(out: Path, *arguments: str) -> int:
    given = ["run", "--quick", "--backends", "reference", "--rounds", "2", "--seconds", "0.01", "--out", str(out)]
    return cli.main([*given, *arguments])


def written(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    assert bench(out, "--peers", "none", "--workloads", "tensor", "vit", "--dtypes", "fp32", "bf16") == 0
    return out


def test_without_peers_lionbits_is_measured_alone(alone: Path) -> None:
    found = written(alone)
    assert (found["suite"], found["peers"], found["backends"]) == ("run", {}, ["reference"])
    assert [part["status"] for part in found["parts"].values()] == ["complete"] * len(run.PARTS)
    rows = [(row["workload"], row["dtype"], row["variant"]) for row in found["speed"]]
    assert len(rows) == len(set(rows)) == 2 * (4 + 6)
    assert {(workload, dtype) for workload, dtype, _ in rows} == {
        (name, dtype) for name in ("one tensor, 2^12", "ViT-B/16") for dtype in ("fp32", "bf16")
    }
    for row in found["speed"]:
        assert (row["problem"], row["host_seconds"]) == ("", [])
        assert len(row["seconds"]) >= 2
        assert row["spread"] >= 0
        assert row["computes"].startswith(("right", "not checked"))
    assert {row["elements"] for row in found["sizes"]} == {1 << 10, 1 << 12}
    assert {row["variant"] for row in found["sizes"]} == {"32 bits", "8 bits", "4 bits"}


def test_tables_and_charts_are_written(alone: Path) -> None:
    text = (alone / "results.md").read_text()
    for heading in ("What each computes", "Speed", "Over sizes"):
        assert f"\n## {heading}\n" in text
    assert "The conformance suite" not in text
    names = ("speed-one-tensor-2-12", "speed-vit-b-16", "sizes")
    expected = {f"{name}-{dtype}.png" for name in names for dtype in ("fp32", "bf16")}
    assert {path.name for path in alone.glob("*.png")} == expected
    assert all((alone / name).read_bytes().startswith(PNG) for name in expected)


def test_a_bar_whose_samples_are_far_apart_is_drawn(tmp_path: Path) -> None:
    rows = [
        Row("list", "", 1, 10, "fp32", "compiled", variant, ours=True, floor_bytes=10**9, copy_bandwidth=1e9)
        for variant in ("8 bits", "4 bits")
    ]
    rows[0].seconds, rows[1].seconds = [1.0], [1e-4, 1e-4, 1.0, 1.0, 1.0]
    (path,) = charts.draw(Results(False, "cpu", None, [], {}, speed=rows), tmp_path)
    assert path.read_bytes().startswith(PNG)


class Unmoved(torch.optim.SGD):
    """Takes its time, and does nothing with it."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__(parameters, lr=0.0)


def fallen(parameters: list[Tensor]) -> Optimizer:
    raise RuntimeError("no such | device")


def slow(parameters: list[Tensor]) -> Optimizer:
    time.sleep(20)
    return Unmoved(parameters)


def eager(parameters: list[Tensor]) -> Optimizer:
    return EagerLion(parameters, **rule.COMMON)


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> None:
    builds = {"eager Lion": eager, "unmoved": Unmoved, "fallen": fallen, "slow": slow}

    def peers(dtype: str, device: torch.device, names: Sequence[str]) -> list[Candidate]:
        made = [Candidate("torch", name, dtype, 4.0, build, False, rule.lion) for name, build in builds.items()]
        return made if names else []

    monkeypatch.setattr(run, "peers", peers)


@pytest.mark.usefixtures("strange")
def test_strange_peers_are_reported_and_end_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--workloads", "small", "--variants", "8", "--limit", "2")
    assert bench(tmp_path, *arguments) == 0
    rows = {row["variant"]: row for row in written(tmp_path)["speed"]}
    assert list(rows) == ["8 bits", "eager Lion", "unmoved", "fallen", "slow"]
    assert rows["unmoved"]["computes"] == "weights unchanged"
    assert rows["fallen"]["computes"] == "cannot be checked: RuntimeError: no such | device"
    assert rows["slow"]["computes"] == "stopped after 2 s"
    problems = [row["problem"] for row in rows.values()]
    assert problems == ["", "", "", "RuntimeError: no such | device", "stopped after 2 s"]
    shown = capsys.readouterr().out
    assert "check: torch unmoved: weights unchanged" in shown
    assert "round 2 of 2" in shown
    line = next(line for line in (tmp_path / "results.md").read_text().splitlines() if "| unmoved | " in line)
    assert "weights unchanged" in line


def test_a_variant_of_ours_that_is_wrong_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = Candidate("reference", "32 bits", "fp32", 4.0, Unmoved, True, rule.lion)
    monkeypatch.setattr(run, "lions", lambda backends, dtype, variants: [wrong])
    assert bench(tmp_path, "--peers", "none", "--workloads", "tensor") == 1
    assert written(tmp_path)["parts"]["check"]["findings"]["failed"] == ["reference 32 bits: weights unchanged"]
    assert written(tmp_path)["parts"]["speed"]["status"] == "complete"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--workloads", "nonesuch"],
        ["run", "--variants", "7"],
        ["run", "--peers", "nobody"],
        ["run", "--rounds", "0"],
        ["run", "--device", "cuda"],
        ["sass", "--caution", "nonesuch"],
        ["compare", "nonesuch.json", "nonesuch.json"],
    ],
)
def test_the_command_line_refuses(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as refused:
        cli.main(arguments)
    assert refused.value.code == 2


def test_help_does_not_wait_for_torch() -> None:
    helping = "import sys; from lionbits_bench.cli import main\ntry: main(['--help'])\n"
    script = helping + "finally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("run", "gpu", "sass", "roofline", "compare", "quality"):
        assert f"\n    {command} " in done.stdout


def test_compiling_begins_with_nothing_and_never_gives_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = str(tmp_path)  # absolute, as torch makes it
    monkeypatch.setenv(run.CACHE, before)
    limit = torch._dynamo.config.recompile_limit
    with run.compiling_anew():
        assert list(Path(os.environ[run.CACHE]).iterdir()) == []
        assert torch._dynamo.config.recompile_limit > 1000
    assert (os.environ[run.CACHE], torch._dynamo.config.recompile_limit) == (before, limit)


def row(variant: str, seconds: list[float], name: str = "compiled") -> Row:
    made = Row("list", "", 1, 1000, "fp32", name, variant, True, seconds=seconds)
    made.floor_bytes, made.copy_bandwidth = 20_000, 1e10
    return made


def test_ratios_are_against_the_eager_lion_of_the_same_list() -> None:
    rows = [row("eager Lion", [4e-3] * 3, "torch"), row("8 bits", [1e-3, 2e-3, 3e-3]), row("4 bits", [])]
    (group,) = tables.groups(rows)
    headings, *lines = tables.cells(group)
    assert headings == ("who", "variant", "ms", "±", "GB/s", "of a copy", "against eager")
    assert lines[1] == ("compiled", "8 bits", "2.000", "1.000", "0.01", "0 %", "2.00x")
    assert lines[2] == ("compiled", "4 bits", "-", "-", "-", "-", "-")


def file(path: Path, rows: list[Row]) -> Path:
    results = report.Results(False, "cpu", None, [], {}, suite="run", speed=rows)
    path.write_text(json.dumps(results.as_json()))
    return path


def test_differences_beyond_both_spreads_are_flagged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [row("32 bits", [1.0, 2.0, 3.0]), row("8 bits", [1.0, 1.0, 1.0]), row("4 bits", [4.0, 4.0])]
    after = [row("32 bits", [1.9, 2.9, 3.9]), row("8 bits", [2.0, 2.0, 2.0]), row("4 bits", [2.0, 2.0])]
    one = file(tmp_path / "a.json", [*before, row("gone", [1.0])])
    other = file(tmp_path / "b.json", [*after, row("new", [1.0]), row("failed", [])])
    parts = dict(compare.changes(*(json.loads(path.read_text()) for path in (one, other))))
    flags = {change.key[-1]: (change.ratio, change.flag) for change in parts["speed"]}
    assert flags == {
        "32 bits": (pytest.approx(1.45), ""),
        "8 bits": (2.0, "slower"),
        "4 bits": (0.5, "faster"),
        "gone": (None, "only in the first"),
        "new": (None, "only in the second"),
    }
    assert cli.main(["compare", str(one), str(other)]) == 0
    assert "slower" in capsys.readouterr().out


def test_a_result_compared_with_itself_has_no_flags(alone: Path) -> None:
    found = written(alone)
    for part, rows in compare.changes(found, found):
        assert [(c.ratio, c.flag) for c in rows] == [(1.0, "")] * len(found[part])
