"""The oracle as a property of runs: exact rational arithmetic must give the same bits.

A comparison of backends with the reference does not show errors of the front end that both share. The oracle shares no
code with either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import bits
from .oracle.differential import StepInput, replay
from .runs import CPU, Optimizer, Run, gradient, parameters, repro_message


def oracle_agrees(lion: Optimizer, backend: Any, run: Run, device: torch.device = CPU) -> None:
    """Check that every parameter, code, scale, residual, norm and count is that of exact, then rounded arithmetic."""
    params = list(parameters(run, device))
    groups = [run.groups or {} if j % 2 else {} for j in range(len(params))]
    settings = [{**run.options, **group} for group in groups]
    inputs = [
        StepInput(
            [_gradient(run, i, j, settings[j], device) for j in range(len(params))],
            {"lr": run.rates[i % len(run.rates)]},
        )
        for i in range(run.steps)
    ]
    difference = replay(lion, {**run.options, "backend": backend}, params, inputs, groups)
    if difference is not None:
        raise bits.Disagreement(f"{repro_message('oracle_agrees', str(backend), run)}\n  {difference}")


def _gradient(
    run: Run, i: int, j: int, settings: dict[str, Any], device: torch.device
) -> Callable[[Tensor], Tensor] | None:
    """Return a function from momentum to the gradient of parameter j at step i, as :func:`runs.record` makes it."""
    if run.missing and (i + 2 * j) % run.missing == 0:
        return None
    tensor = run.tensors[j]

    def made(momentum: Tensor) -> Tensor:
        betas = settings.get("betas", (0.9, 0.99))
        return gradient(run, tensor, i, momentum, betas, -1.0 if settings.get("maximize") else 1.0).to(device)

    return made
