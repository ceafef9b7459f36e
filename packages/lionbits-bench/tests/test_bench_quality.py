"""Held-out loss by variant: runs that start alike, are never repeated and never mixed; what the table makes of them."""

import argparse
import json
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lionbits
from lionbits_bench import cli, quality, quality_chart, quality_table
from lionbits_bench.quality_chart import draw
from lionbits_bench.quality_table import Outcome

TINY = ("--layers", "1", "--width", "32", "--context", "16", "--batch", "2", "--backend", "reference", "--quiet")
SOME = ("32 bits", "8 bits", "4 bits nearest", "2 bits", "no momentum")


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Charts that were asked for, as numbers of rows: drawing takes longer than training here."""
    asked: list[int] = []
    monkeypatch.setattr(quality.quality_chart, "draw", lambda rows, path: asked.append(len(rows)))
    return asked


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., int]:
    """Run the command with a tiny model, into the test's folder unless given another."""

    def command(*options: object, steps: int = 3, seeds: int = 2, variants: tuple[str, ...] = SOME) -> int:
        parser = argparse.ArgumentParser()
        quality.add_parser(parser.add_subparsers(required=True))
        sizes = ("--steps", str(steps), "--seeds", str(seeds), "--variants", *variants, "--out", str(tmp_path))
        given = parser.parse_args(["quality", *TINY, *sizes, *map(str, options)])
        code: int = given.run(given)
        return code

    return command


def runs(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["runs"]
    return found


def losses(folder: Path) -> dict[tuple[str, int], float]:
    return {(run["variant"], run["seed"]): run["validation"][-1][1] for run in runs(folder)}


def outcome(variant: str, seed: int, loss: float, packed: int = 0, seconds: float = 2.0) -> Outcome:
    return Outcome(variant, {}, seed, [(1, 9.0), (10, loss)], 100, packed, 50, 0, seconds, optimizer_seconds=0.5)


def test_every_variant_of_a_seed_before_the_next_seed(
    compare: Callable[..., int], tmp_path: Path, drawn: list[int]
) -> None:
    assert compare() == 0
    assert [(run["seed"], run["variant"]) for run in runs(tmp_path)] == [(s, v) for s in (0, 1) for v in SOME]
    assert drawn == [1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5]
    assert all(f"\n| {name} | " in (tmp_path / "quality.md").read_text() for name in SOME)


def test_all_start_alike_and_see_the_same_data(compare: Callable[..., int], tmp_path: Path) -> None:
    """The first step of a Lion is the gradient's sign, whatever keeps the momentum; later ones differ."""
    assert compare("--out", tmp_path / "one", steps=1) == 0
    first = losses(tmp_path / "one")
    for seed in (0, 1):
        assert len({first[name, seed] for name in SOME}) == 1
    assert first["32 bits", 0] != first["32 bits", 1]
    assert compare("--lr", 0.01, "--out", tmp_path / "ten", steps=10, seeds=1) == 0
    assert len(set(losses(tmp_path / "ten").values())) == len(SOME)


def test_state_has_the_width_that_the_name_says(compare: Callable[..., int], tmp_path: Path) -> None:
    compare(seeds=1)
    size = {run["variant"]: run["state_bytes"] / run["parameters"] for run in runs(tmp_path)}
    assert size["32 bits"] == size["no momentum"] > 2 * size["8 bits"] > 2 * size["4 bits nearest"] > 2 * size["2 bits"]
    packed = {run["variant"]: run["packed_parameters"] for run in runs(tmp_path)}
    assert packed["32 bits"] == 0 < packed["8 bits"] == packed["2 bits"]


def test_what_is_finished_is_not_trained_again(
    compare: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compare("--out", tmp_path / "whole") == 0
    train, begun = quality._train, []

    def killed_in_the_fourth(name: str, config: Any, *others: Any, **options: Any) -> Outcome:
        begun.append((name, config.seed))
        if len(begun) == 4:
            raise KeyboardInterrupt
        return train(name, config, *others, **options)

    monkeypatch.setattr(quality, "_train", killed_in_the_fourth)
    assert compare() == quality.INTERRUPTED
    assert len(runs(tmp_path)) == 3
    assert compare() == 0
    assert begun == [*list(losses(tmp_path))[:4], *list(losses(tmp_path))[3:]]
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_ctrl_c_ends_after_a_whole_step(
    compare: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance, taken = quality.Run.advance, []

    def advance_and_press(self: Any) -> None:
        taken.append(self.step)
        if len(taken) == 5:
            signal.raise_signal(signal.SIGINT)
        advance(self)

    monkeypatch.setattr(quality.Run, "advance", advance_and_press)
    assert compare() == quality.INTERRUPTED
    assert len(taken) == 5
    assert list(losses(tmp_path)) == [("32 bits", 0)]


@pytest.mark.parametrize("options", [("--lr", 0.5), ("--context", 8), ("--batch", 3)])
def test_runs_under_other_conditions_are_neither_mixed_in_nor_overwritten(
    compare: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...]
) -> None:
    assert compare(seeds=1, variants=("32 bits",)) == 0
    before = (tmp_path / "results.json").read_bytes()
    assert compare(*options) == quality.USAGE
    assert "choose another --out" in capsys.readouterr().err.lower()
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_variant_that_changed_its_meaning_is_trained_again(
    compare: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compare(seeds=1, steps=10, variants=("32 bits", "8 bits")) == 0
    before = losses(tmp_path)
    monkeypatch.setitem(quality.VARIANTS, "8 bits", {"optim_bits": 8, "betas": (0.5, 0.5)})
    assert compare(seeds=1, steps=10, variants=("32 bits", "8 bits")) == 0
    after = losses(tmp_path)
    assert after["32 bits", 0] == before["32 bits", 0]
    assert after["8 bits", 0] != before["8 bits", 0]


@pytest.mark.parametrize("options", [("--backend", "nobody"), ("--width", 65), ("--seeds", 0), ("--steps", 0)])
def test_wrong_settings_are_reported_before_training(
    compare: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...]
) -> None:
    assert compare(*options) == quality.USAGE
    assert str(options[1]) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_line_knows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--steps", "1", "--seeds", "1", "--variants", "no momentum", "--out", str(tmp_path))
    assert cli.main(["quality", *TINY, *options]) == 0
    assert "no momentum" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["quality", *TINY, "--variants", "3 bits"])
    assert "3 bits" in capsys.readouterr().err


def test_every_variant_is_one_that_lion_accepts() -> None:
    for settings in quality.VARIANTS.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lionbits.Lion([torch.nn.Parameter(torch.zeros(64, 64))], **settings)


def test_only_the_warning_of_two_bits_is_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any, **settings: Any) -> None:
        warnings.warn("optim_bits=2 is for research: no", UserWarning, stacklevel=2)
        warnings.warn("something else", UserWarning, stacklevel=2)

    monkeypatch.setattr(lionbits, "Lion", build)
    with pytest.warns(UserWarning, match="something else") as caught:
        quality._optimizer([], quality.TrainConfig(), {})
    assert len(caught) == 1


def test_differences_are_paired_by_seed() -> None:
    """By hand: 0.1 and 0.3 more than a mean of 1.5; the third seed has nobody to be compared with."""
    found = [outcome("32 bits", 0, 1.0), outcome("32 bits", 1, 2.0)]
    found += [outcome("8 bits", 0, 1.1), outcome("8 bits", 1, 2.3), outcome("8 bits", 2, 3.8)]
    baseline, row = quality_table.rows(found, ["32 bits", "8 bits", "4 bits"])
    # means and deviations of decimal fractions, which binary ones only come near
    assert row.loss == pytest.approx(2.4)
    assert row.deviation == pytest.approx(1.3527749258)
    assert row.percents == pytest.approx([100 / 15, 20])
    assert (row.percent, row.percent_error) == pytest.approx((40 / 3, 20 / 3))
    assert quality_table.difference(row) == "+13.33 ± 6.67 %"
    assert (baseline.percent, baseline.percent_error) == (None, None)
    assert quality_table.cells(row) == ("8 bits", "2.4000", "1.3528", "+13.33 ± 6.67 %", "0.500", "200.0", "50.0", "3")


def test_times_are_medians_over_seeds() -> None:
    (row,) = quality_table.rows([outcome("8 bits", seed, 2.0, seconds=s) for seed, s in enumerate((3, 2, 900))], SOME)
    assert row.step_seconds == pytest.approx(0.3)


def test_one_seed_has_no_spread_and_no_baseline_no_difference() -> None:
    single, without_32 = [outcome("32 bits", 0, 2.0), outcome("8 bits", 0, 1.9)], [outcome("8 bits", 0, 1.9)]
    (_, row), (alone,) = (quality_table.rows(found, list(quality.VARIANTS)) for found in (single, without_32))
    assert quality_table.cells(row)[1:4] == ("1.9000", "-", "-5.00 %")
    assert quality_table.cells(alone)[3] == "-"


def test_the_chart_takes_what_is_far_away_or_no_number(tmp_path: Path) -> None:
    found = [outcome("32 bits", 0, 2.0), outcome("8 bits", 0, 90.0, 99), outcome("4 bits", 0, float("nan"), 99)]
    rows = quality_table.rows(found, list(quality.VARIANTS))
    draw(rows, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert quality_chart._colour(rows[0]) != quality_chart._colour(rows[1])
