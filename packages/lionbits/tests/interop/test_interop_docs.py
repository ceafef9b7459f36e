"""Every block of docs/migrating.md runs, in order, and its figures are those of the tests."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion8bit, interop
from lionbits.cli import main

PAGE = (Path(__file__).parents[4] / "docs" / "migrating.md").read_text(encoding="utf-8")


class Model(nn.Module):
    """What a user has: embeddings and matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        self.linear = nn.Linear(64, 80)


def checkpoint(model: nn.Module) -> dict[str, Any]:
    """As bitsandbytes would have saved it; its own state dicts are tried elsewhere."""
    optimizer = Lion8bit(model.parameters(), lr=3e-5, weight_decay=0.1)
    for param in model.parameters():
        param.grad = torch.randn(param.shape)
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": interop.to_bitsandbytes(optimizer)}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_block_of_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Model()
    torch.save(checkpoint(model), "checkpoint.pt")
    names: dict[str, Any] = {"torch": torch, "model": model}
    assert len(blocks("python")) == 8
    for block in blocks("python"):
        exec(block, names)
    assert names["exact"]["state"]


def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(checkpoint(Model()), "checkpoint.pt")
    commands = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    assert len(commands) == 3
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "lionbits"
        assert main(arguments) == 0
    assert interop.recognise(torch.load("back.pt", weights_only=True)["optimizer"]) == "bitsandbytes"


def test_every_function_that_there_is_is_told_of() -> None:
    functions = [name for name in interop.__all__ if name.startswith(("from_", "to_"))]
    assert all(f"`{name}`" in PAGE.replace("interop.", "") for name in functions)
    told = set(re.findall(r"\b(?:from|to)_\w+", PAGE))
    assert told <= {*functions, "from_adamw"}
