"""Modules that ``import lionbits`` adds to torch, and names that ``torch.compile`` sees of it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

import lionbits

NEW = """
import sys
import torch
before = set(sys.modules)
import lionbits
print(*sorted(set(sys.modules) - before))
"""


def test_import_brings_nothing_but_itself_and_the_standard_library() -> None:
    """No optional dependency, no compiler, no DTensor: a part of torch that torch leaves for later stays there."""
    done = subprocess.run([sys.executable, "-c", NEW], capture_output=True, text=True, check=True, timeout=300)
    found = done.stdout.split()
    assert "lionbits.optimizer" in found
    ours = ("lionbits", "lionbits_reference")
    strangers = [name for name in found if name.partition(".")[0] not in (*ours, *sys.stdlib_module_names)]
    assert not strangers


def test_torch_compile_finds_nothing_of_an_update_to_compile() -> None:
    """Not even at the first call, which is when the update is taken from the compiler's sight."""
    graphs = []

    def collect(graph: torch.fx.GraphModule, _: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    weight = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = lionbits.Lion8bit([weight])
    step = torch.compile(optimizer.step, backend=collect)
    for _ in range(3):
        weight.grad = torch.ones(64, 64)
        step()
    torch._dynamo.reset()
    assert optimizer.state[weight]["step"] == 3
    assert not graphs
