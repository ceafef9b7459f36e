"""Every block of docs/migrating.md runs, in order, and its figures are those of the tests."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from lionbits import Lion8bit, interop
from lionbits.cli import main

from ..pages import Model, blocks, due, run, text

(PAGE,) = due(__file__)


def checkpoint(model: Model) -> dict[str, Any]:
    """As bitsandbytes would have saved it; its own state dicts are tried elsewhere."""
    optimizer = Lion8bit(model.parameters(), lr=3e-5, weight_decay=0.1)
    for param in model.parameters():
        param.grad = torch.randn(param.shape)
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": interop.to_bitsandbytes(optimizer)}


def test_every_block_of_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Model()
    torch.save(checkpoint(model), "checkpoint.pt")
    assert run(PAGE, model=model)["exact"]["state"]


def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(checkpoint(Model()), "checkpoint.pt")
    commands = [line.removeprefix("$ ") for block in blocks(PAGE, "console") for line in block.splitlines()]
    assert len(commands) == 3
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "lionbits"
        assert main(arguments) == 0
    assert interop.recognise(torch.load("back.pt", weights_only=True)["optimizer"]) == "bitsandbytes"


def test_every_function_that_there_is_is_told_of() -> None:
    functions = [name for name in interop.__all__ if name.startswith(("from_", "to_"))]
    assert all(f"`{name}`" in text(PAGE).replace("interop.", "") for name in functions)
    told = set(re.findall(r"\b(?:from|to)_\w+", text(PAGE)))
    assert told <= {*functions, "from_adamw"}
