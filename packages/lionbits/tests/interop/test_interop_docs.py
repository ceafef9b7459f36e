"""Every block of docs/migrating.md runs, in order, and its figures are those of the tests."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from lionbits import Lion8bit, interop
from lionbits_cli import main

from ..pages import Model, blocks, due, run, text

(PAGE,) = due(__file__)


def checkpoint(model: Model) -> dict[str, Any]:
    """As bitsandbytes would have saved it; its own state dicts are tried elsewhere."""
    optimizer = Lion8bit(model.parameters(), lr=3e-5, weight_decay=0.1)
    for param in model.parameters():
        param.grad = torch.randn(param.shape)
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": interop.to_bitsandbytes(optimizer)}


def grouped(model: Model) -> dict[str, Any]:
    """The same with two groups, and a schedule that made one step."""
    matrices = [param for param in model.parameters() if param.ndim >= 2]
    groups = [{"params": matrices, "lr": 1e-3}, {"params": [model.linear.bias], "lr": 2e-3}]
    optimizer = Lion8bit(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    for param in model.parameters():
        param.grad = torch.randn(param.shape)
    optimizer.step()
    schedule.step()
    return {"optimizer": interop.to_bitsandbytes(optimizer), "schedule": schedule.state_dict()}


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the page leaves, run beside checkpoints as bitsandbytes' users have them."""
    monkeypatch.chdir(tmp_path)
    model = Model()
    torch.save(checkpoint(model), "checkpoint.pt")
    torch.save(grouped(model), "grouped.pt")
    return run(PAGE, model=model)


def test_every_block_of_python_runs(left: dict[str, Any]) -> None:
    assert left["exact"]["state"]


def test_a_schedule_goes_on_over_groups_that_overrides_have_split(left: dict[str, Any]) -> None:
    """Each group's rate is that of the group that its parameters were in, times what the schedule says."""
    schedule = left["schedule"]
    optimizer = schedule.optimizer  # the page makes others later
    names = [group["param_names"] for group in optimizer.param_groups]
    assert names == [["embed.weight"], ["linear.weight"], ["linear.bias"]]
    for param in left["model"].parameters():
        param.grad = torch.randn(param.shape)
    optimizer.step()
    schedule.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [1e-3 * 0.9**2, 1e-3 * 0.9**2, 2e-3 * 0.9**2]


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


def test_every_function_that_there_is_is_reported_of() -> None:
    functions = [name for name in interop.__all__ if name.startswith(("from_", "to_"))]
    assert all(f"`{name}`" in text(PAGE).replace("interop.", "") for name in functions)
    named = set(re.findall(r"\b(?:from|to)_\w+", text(PAGE)))
    assert named <= {*functions, "from_adamw"}
