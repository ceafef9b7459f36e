"""A model small enough that a test trains it several times."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lionbits_cli import main
from lionbits_cli.training import Run

SMALL = [
    "--steps",
    "6",
    "--batch",
    "2",
    "--context",
    "32",
    "--layers",
    "1",
    "--width",
    "64",
    "--heads",
    "2",
    "--eval-every",
    "2",
    "--device",
    "cpu",
    "--quiet",
]


@pytest.fixture
def train() -> Callable[..., int]:
    """`lionbits train` with a small model, the arguments of the test, and no progress bar."""

    def command(*arguments: object) -> int:
        return main(["train", *SMALL, *map(str, arguments)])

    return command


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Press Ctrl-C, once or more, in the middle of the given training step (counted over all runs)."""

    def arrange(step: int, presses: int = 1) -> None:
        advance = Run.advance
        taken = 0

        def advance_and_press(self: Run) -> None:
            nonlocal taken
            taken += 1
            if taken == step:
                for _ in range(presses):
                    signal.raise_signal(signal.SIGINT)
            advance(self)

        monkeypatch.setattr(Run, "advance", advance_and_press)

    return arrange


@pytest.fixture
def read_checkpoint() -> Callable[[Path], dict[str, Any]]:
    def read(folder: Path) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
        return content

    return read


@pytest.fixture
def read_metrics() -> Callable[[Path], dict[str, Any]]:
    def read(folder: Path) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return content

    return read
