"""`lionbits train`, one variant: its files, its options, and what it refuses."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

from lionbits import install
from lionbits_cli import main, variants
from lionbits_cli.config import TrainConfig
from lionbits_cli.console import CommandError
from lionbits_cli.model import ByteTransformer

Train = Callable[..., int]


def test_a_run_leaves_its_four_files(train: Train, read_metrics: Callable[..., Any], tmp_path: Path) -> None:
    assert train("--out", tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.pt",
        "loss.png",
        "metrics.json",
        "sample.txt",
    }
    assert matplotlib.image.imread(tmp_path / "loss.png").shape[1] >= 1200
    assert (tmp_path / "sample.txt").read_text(encoding="utf-8").startswith("def ")
    metrics = read_metrics(tmp_path)
    assert set(metrics) == {
        "schema", "variant", "class", "config", "environment", "parameters", "validation", "optimizer", "paging",
        "seconds", "tokens_per_second", "history",
    }  # fmt: skip
    assert (metrics["variant"], metrics["class"]) == ("lion8", "Lion8bit")
    assert metrics["validation"]["bits_per_byte"] == metrics["validation"]["loss"] / math.log(2)
    assert len(metrics["history"]["train"]) == 6
    assert [step for step, _ in metrics["history"]["validation"]] == [2, 4, 6]
    assert 0 < metrics["optimizer"]["step_share"] < 1
    assert 1 <= metrics["optimizer"]["bytes_per_parameter"] < 1.2
    assert metrics["optimizer"]["skipped_elements"] == 0


def test_the_table_shows_what_was_measured(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("--out", tmp_path)
    shown = capsys.readouterr().out
    for word in ("validation loss", "bits per byte", "bytes/param", "in step", "lion8", "loss.png"):
        assert word in shown
    assert "against" not in shown


@pytest.mark.parametrize("variant", [name for name in variants.VARIANTS if name != "lion2"])
def test_every_variant_trains(train: Train, tmp_path: Path, variant: str) -> None:
    assert train("--variant", variant, "--steps", 1, "--out", tmp_path) == 0


@pytest.mark.filterwarnings("ignore:.*2")
def test_two_bits_train(train: Train, read_metrics: Callable[..., Any], tmp_path: Path) -> None:
    assert train("--variant", "lion2", "--steps", 1, "--out", tmp_path) == 0
    assert read_metrics(tmp_path)["optimizer"]["bytes_per_parameter"] < 0.5


@pytest.mark.parametrize(
    "options",
    [
        "--cautious",
        "--cautious timm",
        "--variant QLion --cautious gradient",
        "--variant Lion --bits 4",
        "--variant qlion --bits 32",
        "--paged --page-budget 1M",
        "--dtype bfloat16 --param-rounding dithered",
        "--dtype bfloat16 --param-rounding compensated --master-bits 24",
        "--backend reference",
    ],
)
def test_every_option_reaches_the_optimizer(train: Train, tmp_path: Path, options: str) -> None:
    assert train(*options.split(), "--steps", 1, "--out", tmp_path) == 0


def test_class_names_are_variants_too() -> None:
    assert variants.canonical("PagedLion4bit") == variants.canonical("paged_lion4") == "paged-lion4"
    assert variants.canonical("QLion") == "qlion"
    with pytest.raises(CommandError, match="unknown variant 'adam'"):
        variants.canonical("adam")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--variant adam", "unknown variant"),
        ("--variant lion8 --bits 4", "bits"),
        ("--variant qlion --bits 8", "4 and 32"),
        ("--variant qlion --paged", "no paged variant"),
        ("--variant qlion --cautious mask", "cautious"),
        ("--steps 0", "--steps"),
        ("--lr -1", "--lr"),
        ("--width 60 --heads 7", "--heads"),
        ("--param-rounding dithered", "bfloat16"),
        ("--backend nonesuch", "nonesuch"),
        ("--context 100000000", "longer than the text"),
    ],
)
def test_what_cannot_be_done_is_said_without_a_traceback(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    assert train(*options.split(), "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "rich" else find(name, *a))
    assert train("--out", tmp_path) == 2
    assert install.command("cli") in capsys.readouterr().err


def test_the_schedule_warms_up_and_ends_at_a_tenth() -> None:
    config = TrainConfig(steps=400, lr=1.0)
    rates = [config.learning_rate(step) for step in range(1, 401)]
    assert rates[0] == 1 / 20
    assert max(rates) == rates[19] == 1.0
    assert rates[-1] == 0.1
    assert rates[19:] == sorted(rates[19:], reverse=True)
    assert TrainConfig(steps=1).learning_rate(1) > 0


def test_the_model_is_causal_and_a_function_of_its_seed() -> None:
    first, second = (ByteTransformer(2, 32, 2, 16, seed=3) for _ in range(2))
    text = torch.randint(256, (1, 16), generator=torch.Generator().manual_seed(0))
    changed = text.clone()
    changed[0, 10:] = 0
    assert torch.equal(first(text), second(text))
    assert torch.equal(first(text)[:, :10], first(changed)[:, :10])
    assert (first(text)[:, 10:] != first(changed)[:, 10:]).any(dim=-1).all()


def test_without_quiet_progress_and_sample_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = [
        "--steps",
        "2",
        "--batch",
        "2",
        "--context",
        "16",
        "--layers",
        "1",
        "--width",
        "32",
        "--heads",
        "1",
        "--eval-every",
        "1",
    ]
    assert main(["train", *size, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "step 2/2, validation loss" in shown.err
    assert "tokens/s" in shown.err
    assert "lion8 writes:" in shown.out
