"""Calling the backend: the numbers of a call from plain Python ones, and a step of one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lionbits_reference import backend
from lionbits_reference.spec import Hyper, Plan, Scalars, Slot


def scalars(
    lr: Sequence[float],
    keep: Sequence[float] | None = None,
    grad_scale: Sequence[float] | None = None,
    step: Sequence[int] | None = None,
    absmax: torch.Tensor | None = None,
) -> Scalars:
    """Numbers of as many slots as there are learning rates: no decay, no scaling, the first step, unless given."""
    ones = [1.0] * len(lr)
    return Scalars(
        lr=torch.tensor(lr, dtype=torch.float32),
        keep=torch.tensor(ones if keep is None else keep, dtype=torch.float32),
        grad_scale=torch.tensor(ones if grad_scale is None else grad_scale, dtype=torch.float32),
        step=torch.tensor([1] * len(lr) if step is None else step, dtype=torch.int64),
        skipped=torch.zeros(1, dtype=torch.int64),
        absmax=absmax,
    )


def new_state(plan: Plan, shape: Sequence[int]) -> dict[str, torch.Tensor]:
    """Zeroed state of a parameter of ``shape``."""
    return {key: torch.zeros(spec.shape, dtype=spec.dtype) for key, spec in plan.state_spec(shape).items()}


def step_one(plan: Plan, slot: Slot, hyper: Hyper, numbers: Scalars) -> int:
    """A step of one slot; how many elements were skipped comes back. A tensor-wise scale is stored after it."""
    if plan.format.tensor_wise:
        largest = backend.absmax(plan, [slot], hyper, numbers)
        numbers = Scalars(numbers.lr, numbers.keep, numbers.grad_scale, numbers.step, numbers.skipped, largest)
        backend.step(plan, [slot], hyper, numbers)
        usable = largest > 2.0**-100
        slot.state["exp_avg_scale"].copy_(torch.where(usable, largest / torch.full_like(largest, plan.format.top), 0.0))
    else:
        backend.step(plan, [slot], hyper, numbers)
    return int(numbers.skipped.item())
