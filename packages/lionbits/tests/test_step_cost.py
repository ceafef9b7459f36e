"""What a step costs the host before any kernel runs: a few passes over the tensors, at the speed of C."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import lionbits_reference
from lionbits import Lion

TENSORS = 300


@pytest.fixture
def idle() -> ModuleType:
    """A backend that does nothing, at once."""
    module = ModuleType("lionbits_idle")
    vars(module).update({key: getattr(lionbits_reference, key) for key in lionbits_reference.__all__})
    vars(module).update(name="idle", step=lambda *_: None)
    module.aligned = lambda _, grads, *__: torch.zeros(len(grads), dtype=torch.int64)  # type: ignore[attr-defined]
    module.absmax = lambda _, grads, *__: torch.zeros(len(grads))  # type: ignore[attr-defined]
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
            if "cache" in before:
                optimizer._step_cache = before["cache"]
            if "factor" in before:
                optimizer.param_groups[0]["lr"] *= before["factor"]
            begin = time.perf_counter()
            optimizer.step()
            times.append(time.perf_counter() - begin)
            optimizer.zero_grad()
        return min(times)

    best(3)
    again, scheduled, anew = best(200), best(200, factor=0.999), best(20, cache=None)
    figures = ", ".join(
        f"{name} {1e6 * taken:.0f} us"
        for name, taken in (("like the last", again), ("another rate", scheduled), ("made anew", anew))
    )
    print(f"host time of a step over {TENSORS} tensors of {bits}-bit state: {figures}")
    assert again < anew / 4
    assert scheduled < anew / 4


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grad_clip": {"grad_clip": 0.1},
    "percentile_clipping": {"percentile_clipping": 5},
    "both, some tensors": {"grad_clip": 0.1, "percentile_clipping": 5, "mixed": True},
    "cautious": {"cautious": "mask"},
    "a scale per tensor": {"block_wise": False},
    "loss scale": {"grad_clip": 0.1, "scaled": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_operations_of_a_step_do_not_grow_with_tensors(idle: ModuleType, name: str) -> None:
    """Beside the backend's own, for 3 and for 300 tensors: each operation but a view is a launch on a GPU."""
    settings = dict(SETTINGS[name])
    mixed, scaled = settings.pop("mixed", False), settings.pop("scaled", False)

    def operations(tensors: int) -> list[str]:
        params = [nn.Parameter(torch.zeros(4, 64)) for _ in range(tensors)]
        unclipped = {"params": params[2::3], "grad_clip": 0.0, "percentile_clipping": 100}
        groups: Any = [{"params": params[::3]}, {"params": params[1::3]}, unclipped] if mixed else params
        optimizer: Any = Lion(groups, optim_bits=8, min_8bit_size=1, backend=idle, **settings)
        if scaled:
            optimizer.grad_scale = torch.tensor(1024.0)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        with Launches() as launches:
            optimizer.step()
        return launches.names

    few, many = operations(3), operations(300)
    print(f"{name}: {len(many)} operations")
    assert many == few


class Launches(TorchDispatchMode):
    """Names of the operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "unbind" not in str(func):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))
