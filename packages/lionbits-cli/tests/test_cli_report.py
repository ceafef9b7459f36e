"""`lionbits report`: its checks pass on our optimizer, and each of them can fail."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import matplotlib.image
import pytest

from lionbits_cli import main, report
from lionbits_cli.experiment import Record, measure


@pytest.fixture(scope="module")
def record() -> Record:
    return measure(60, seed=0)


def failed(record: Record) -> list[str]:
    return [check.what for check in report.check(record) if not check.passed]


def test_a_short_report_passes_and_leaves_picture_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--steps", "60", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count(" pass ") == 7
    assert "FAIL" not in shown
    assert matplotlib.image.imread(tmp_path / "report.png").shape[1] >= 1200
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["passed"] is True
    assert len(content["checks"]) == 7
    assert len(content["record"]["losses"]) == 60


def test_the_three_groups_have_their_own_state(record: Record) -> None:
    packed = {name for name, (_, is_packed) in record.elements.items() if is_packed}
    assert packed == {"0.weight", "2.weight"}
    assert record.coverage[-1] == (25600 + 2560) / (25600 + 256 + 2560 + 10)


def test_an_optimizer_that_does_not_clip_is_found_out() -> None:
    assert failed(measure(60, seed=0, grad_clip=0.0)) == ["it was clipped to 0.5"]


def worse(record: Record) -> None:
    record.losses[-1] = record.losses[0] + 1


def uncovered(record: Record) -> None:
    record.coverage[5] = 0.4


def not_finite(record: Record) -> None:
    record.finite = False


def frozen(record: Record) -> None:
    record.update_norms[20] = 0.0


def too_far(record: Record) -> None:
    record.explosion[2].change = record.explosion[2].change_bound * 1.01


def not_a_number(record: Record) -> None:
    record.explosion[2].change = float("nan")


def no_explosion(record: Record) -> None:
    record.explosion[2].gradient = 1.0


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (worse, "the loss fell"),
        (uncovered, "at least half of the elements have 4-bit state"),
        (not_finite, "all parameters are finite"),
        (frozen, "every step moved the parameters"),
        (too_far, "it moved no tensor further than a step may"),
        (not_a_number, "it moved no tensor further than a step may"),
        (no_explosion, "step 10 had an exploded gradient"),
    ],
)
def test_every_check_can_fail(record: Record, damage: Callable[[Record], None], check: str) -> None:
    damaged = deepcopy(record)
    damage(damaged)
    assert failed(record) == []
    assert failed(damaged) == [check]


def test_a_failing_check_is_the_exit_code(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = deepcopy(record)
    worse(damaged)
    monkeypatch.setattr(report, "measure", lambda steps, seed: damaged)
    assert main(["report", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("FAIL") == 1
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["passed"] is False


def test_too_few_steps_for_the_explosion_are_refused(tmp_path: Path) -> None:
    assert main(["report", "--steps", "9", "--out", str(tmp_path)]) == 2


def test_the_record_is_a_function_of_the_seed(record: Record) -> None:
    assert measure(20, seed=0).losses == record.losses[:20]
    assert measure(20, seed=1).losses != record.losses[:20]
