"""`lionbits train --compare`: one start, one text, several variants side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from lionbits_cli import main

Train = Callable[..., int]
Read = Callable[[Path], dict[str, Any]]
NAMES = ("lion32", "lion8", "lion4", "qlion")


def test_a_comparison_writes_its_files_and_table(
    train: Train, read_metrics: Read, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--compare", *NAMES, "--out", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "against lion32" in shown
    assert all(name in shown for name in NAMES)
    assert matplotlib.image.imread(tmp_path / "loss.png").shape[1] >= 1200
    for name in NAMES:
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert files == {"checkpoint.pt", "loss.png", "metrics.json", "sample.txt"}

    metrics = read_metrics(tmp_path)
    assert metrics["baseline"] == "lion32"
    assert tuple(metrics["runs"]) == NAMES
    assert metrics["runs"]["lion32"]["against_baseline_percent"] == 0
    sizes = [metrics["runs"][name]["optimizer"]["bytes_per_parameter"] for name in NAMES]
    assert sizes[0] == 4
    assert sizes[0] > sizes[1] > sizes[2]


def test_everyone_starts_from_the_same_weights_and_data(train: Train, read_metrics: Read, tmp_path: Path) -> None:
    assert train("--compare", "lion32", "Lion8bit", "QLion", "--out", tmp_path) == 0
    first_losses = {read_metrics(tmp_path / name)["history"]["train"][0] for name in ("lion32", "lion8", "qlion")}
    assert len(first_losses) == 1


def test_an_interrupted_comparison_continues_as_a_whole(
    train: Train, interrupt_at: Callable[..., None], read_metrics: Read, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert train("--compare", "lion32", "lion8", "lion4", "--out", straight) == 0
    interrupt_at(9)  # step 3 of the second variant
    assert train("--compare", "lion32", "lion8", "lion4", "--out", stopped) == 130
    assert f"lionbits train --resume {stopped}\n" in capsys.readouterr().err
    assert main(["train", "--resume", str(stopped), "--quiet"]) == 0
    for name in ("lion32", "lion8", "lion4"):
        assert read_metrics(straight / name)["history"]["train"] == read_metrics(stopped / name)["history"]["train"]


def test_a_new_comparison_forgets_the_checkpoints_of_an_older_one(
    train: Train, interrupt_at: Callable[..., None], read_metrics: Read, tmp_path: Path
) -> None:
    assert train("--compare", "lion32", "lion8", "--out", tmp_path) == 0
    interrupt_at(3)
    assert train("--compare", "lion32", "lion8", "--lr", "0.001", "--out", tmp_path) == 130
    assert main(["train", "--resume", str(tmp_path), "--quiet"]) == 0
    assert read_metrics(tmp_path / "lion8")["config"]["lr"] == 0.001


def test_a_wrong_variant_is_refused_before_anything_trains(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--compare", "lion", "qlion", "--bits", 8, "--out", tmp_path / "out") == 2
    assert "4 and 32" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_single_run_does_not_move_into_a_comparison(train: Train, tmp_path: Path) -> None:
    assert train("--compare", "lion32", "--steps", 1, "--out", tmp_path) == 0
    assert train("--out", tmp_path) == 2


def test_a_folder_without_a_comparison_cannot_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "holds no comparison" in capsys.readouterr().err
