"""What a step costs the host before any kernel runs: a few passes over the tensors, at the speed of C."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import lionbits_reference
from lionbits import Lion

TENSORS = 300


@pytest.fixture
def idle() -> ModuleType:
    """A backend that does nothing, at once."""
    module = ModuleType("lionbits_idle")
    vars(module).update({key: getattr(lionbits_reference, key) for key in lionbits_reference.__all__})
    vars(module).update(name="idle", step=lambda *_: None)
    return module


@pytest.mark.parametrize("bits", [32, 8])
def test_a_step_like_the_last_costs_a_fraction_of_one_that_is_made_anew(idle: ModuleType, bits: int) -> None:
    """A tenth on a quiet machine; `pytest -s` shows the times. The best of many, as tests run beside each other."""
    params = [nn.Parameter(torch.zeros(64, 64)) for _ in range(TENSORS)]
    optimizer = Lion(params, weight_decay=0.1, optim_bits=bits, backend=idle)

    def best(steps: int, **before: Any) -> float:
        times = []
        for _ in range(steps):
            for param in params:
                param.grad = torch.empty_like(param)
            if "steady" in before:
                optimizer._step_cache = before["steady"]
            if "factor" in before:
                optimizer.param_groups[0]["lr"] *= before["factor"]
            begin = time.perf_counter()
            optimizer.step()
            times.append(time.perf_counter() - begin)
            optimizer.zero_grad()
        return min(times)

    best(3)
    again, scheduled, anew = best(200), best(200, factor=0.999), best(20, steady=None)
    figures = ", ".join(
        f"{name} {1e6 * taken:.0f} us"
        for name, taken in (("like the last", again), ("another rate", scheduled), ("made anew", anew))
    )
    print(f"host time of a step over {TENSORS} tensors of {bits}-bit state: {figures}")
    assert again < anew / 4
    assert scheduled < anew / 4
