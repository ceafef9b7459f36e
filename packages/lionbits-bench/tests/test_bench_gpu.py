"""The suite: a dry run from outside, and parts that fail or run out of time from inside."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lionbits_bench import cli, gpu, report
from lionbits_bench.gpu import Run
from lionbits_bench.results import Findings, Part, Replay, Results, Row
from lionbits_bench.timing import Deadline

PARTS = ["environment", "conformance", "speed", "host", "paging", "launches", "replay"]
VARIANTS = {"bf16": 6, "fp32": 4}
TORCHS = 3  # eager Lion, AdamW fused and foreach


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "lionbits_bench", "gpu", "--dry-run", "--backends", "reference"]
    done = subprocess.run([*command, "--out", str(folder)], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


@pytest.fixture
def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_every_part_is_complete(results: dict[str, Any]) -> None:
    assert {name: part["status"] for name, part in results["parts"].items()} == dict.fromkeys(PARTS, "complete")
    assert results["schema"] == 1
    assert results["backends"] == ["reference"]
    assert results["diagnoses"]["reference"] == ""


def test_the_suite_has_run(results: dict[str, Any]) -> None:
    (outcome,) = results["conformance"]
    assert outcome["finished"]
    assert outcome["passed"] == outcome["collected"] > 10
    assert outcome["failed"] == 0


def test_everyone_is_measured_on_everything(results: dict[str, Any]) -> None:
    ours = [row for row in results["speed"] if row["ours"]]
    lists = {row["workload"] for row in ours}
    assert len(lists) == 6
    for dtype, count in VARIANTS.items():
        for name in lists:
            assert sum(row["workload"] == name and row["dtype"] == dtype for row in ours) == count
    for row in results["speed"] + results["host"]:
        assert row["problem"] == ""
        # a quotient of float64 formed twice: the last bit may differ
        assert row["bandwidth"] == row["floor_bytes"] / row["step_seconds"]
        assert (row["kernels"], row["waits"], row["peak_bytes"]) == (None, None, None)
    assert sum(row["ours"] for row in results["host"]) == sum(VARIANTS.values())
    torchs = [row for row in results["speed"] if row["name"] == "torch"]
    assert len(torchs) == 6 * len(VARIANTS) * TORCHS


def test_recorded_steps_are_compared(results: dict[str, Any]) -> None:
    assert [replay["equal"] for replay in results["replay"]] == [True] * VARIANTS["bf16"]


def test_the_tables_have_a_row_per_measurement(out: Path, results: dict[str, Any]) -> None:
    text = (out / "results.md").read_text()
    sections = dict(zip(*[iter(re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:])] * 2, strict=True))
    assert list(sections) == [
        "How it went",
        "Environment",
        "The conformance suite",
        "Speed",
        "Host time",
        "Paging",
        "Recorded steps",
    ]
    for heading, key in (("Speed", "speed"), ("Host time", "host"), ("Recorded steps", "replay")):
        rows = [line.split(" | ")[:2] for line in sections[heading].splitlines() if line.startswith("| ")]
        who = [[name.removeprefix("| "), variant] for name, variant in rows]
        assert [w for w in who if w[0] not in {"who", "---"}] == [[r["name"], r["variant"]] for r in results[key]]
    for part in PARTS:
        assert f"| {part} | complete |" in sections["How it went"]


def test_progress_and_a_summary_are_printed(out: Path) -> None:
    shown = (out / "stdout").read_text()
    for part in PARTS:
        assert f"s] {part}: at most" in shown
    assert "conformance suite of reference" in shown
    assert "FAILED" not in shown


def only(monkeypatch: pytest.MonkeyPatch, **parts: Any) -> None:
    monkeypatch.setattr(gpu, "PARTS", {name: (1.0, function) for name, function in parts.items()})


def test_a_part_that_raises_is_reported_and_the_next_one_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[dict[str, Any]] = []

    def fall(run: Run, deadline: Deadline, findings: Findings) -> None:
        raise RuntimeError("the device fell off the bus")

    def follow(run: Run, deadline: Deadline, findings: Findings) -> None:
        begun.append(json.loads((tmp_path / "results.json").read_text()))

    only(monkeypatch, environment=gpu.look, speed=fall, replay=follow)
    assert cli.main(["gpu", "--dry-run", "--backends", "reference", "--out", str(tmp_path)]) == gpu.FAILED
    (written,) = begun
    assert {name: part["status"] for name, part in written["parts"].items()} == {
        "environment": "complete",
        "speed": "failed",
        "replay": "started",
    }
    sentence = "speed: RuntimeError: the device fell off the bus"
    assert sentence in capsys.readouterr().out
    assert f"- {sentence}" in (tmp_path / "results.md").read_text()


def test_time_that_is_short_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only(monkeypatch, environment=gpu.look, speed=gpu.race, replay=gpu.record)
    code = gpu.run(gpu.dry_run(), ["reference"], tmp_path, minutes=0.0)
    assert code == gpu.CUT_SHORT
    written = json.loads((tmp_path / "results.json").read_text())
    assert [part["status"] for part in written["parts"].values()] == ["complete", "cut short", "cut short"]
    assert len(written["parts"]["speed"]["findings"]["unfinished"]) == 6 * len(VARIANTS)
    assert sum(row["ours"] for row in written["speed"]) == 6 * sum(VARIANTS.values())
    assert all(row["problem"] == "not reached" for row in written["speed"])
    assert len(written["parts"]["replay"]["findings"]["unfinished"]) == VARIANTS["bf16"]


@pytest.mark.parametrize("name", ["nonesuch", "cupy"])
def test_a_backend_that_cannot_serve_is_a_failure_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.delenv("LIONBITS_CUPY_EMULATE", raising=False)
    only(monkeypatch, environment=gpu.look)
    arguments = ["gpu", "--dry-run", "--backends", f"{name},reference", "--out", str(tmp_path)]
    assert cli.main(arguments) == gpu.FAILED
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["backends"] == ["reference"]
    assert written["parts"]["environment"]["findings"]["failed"][0].startswith(f"{name} cannot serve cpu: ")


def test_shares_that_are_not_used_go_to_later_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left: list[float] = []

    def note(run: Run, deadline: Deadline, findings: Findings) -> None:
        left.append(deadline.left)

    only(monkeypatch, a=note, b=note, c=note, d=note)
    gpu.run(gpu.dry_run(), None, tmp_path, minutes=10)
    whole = 600 - gpu.RESERVE
    # clocks go on between the parts
    assert left == [pytest.approx(whole / n, rel=0.02) for n in (4, 3, 2, 1)]


@pytest.mark.parametrize("arguments", [["--minutes", "0"], ["--minutes", "soon"], ["--backends", ","], []])
def test_the_command_line_refuses(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as refused:
        cli.main(["gpu", *arguments])
    assert refused.value.code == 2


def test_many_failures_are_all_in_the_tables_and_not_all_in_the_summary() -> None:
    texts = [f"problem {n}" for n in range(20)]
    found = Results(False, "cuda:0", 9.0, [], {"speed": Part("failed", findings=Findings(failed=texts))})
    text, short = report.markdown(found), report.summary(found)
    assert [f"- speed: {t}" in text for t in texts] == [True] * 20
    assert [f"FAILED     speed: {t}" in short for t in texts] == [True] * 15 + [False] * 5
    assert "FAILED     and 5 more, all in results.md" in short


def test_what_only_a_gpu_has_is_in_the_table() -> None:
    row = Row("list", "half of it", 3, 1000, "bf16", "triton", "8 bits", ours=True, seconds=[2e-3, 1e-3, 4e-3])
    row.host_seconds, row.floor_bytes, row.copy_bandwidth = [5e-5], 4_000_000, 4e9
    row.kernels, row.transfers, row.waits, row.peak_bytes, row.held_bytes = 2, 1, 0, 3_500_000_000, 3_000_000_000
    found = Results(False, "cuda:0", 9.0, ["triton"], {"speed": Part("complete", 1.0, 2.0)}, speed=[row])
    found.replay = [Replay("triton", "8 bits", "bf16", 3, problem="RuntimeError: no | graph")]
    text = report.markdown(found)
    assert "### list, bf16: half of it" in text
    assert "3 tensors, 1,000 elements; a copy ran at 4.0 GB/s." in text
    assert "| triton | 8 bits | 2.000 | 1.500 | 2.00 | 50 % | 2 | 1 | 0 | 50 | 3.50 | 500.0 |" in text
    assert "| RuntimeError: no \\| graph |" in text
