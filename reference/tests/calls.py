"""Calling the backend: slots with gradients, the numbers of a call from plain Python ones, a step of one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lionbits_reference import backend
from lionbits_reference.spec import Hyper, Plan, Scalars, Slot


@dataclass
class GradSlot:
    """A slot's arguments, and its gradient."""

    param: torch.Tensor
    grad: torch.Tensor
    state: Mapping[str, Any]
    index: int
    start: int = 0
    pitch: int | None = None

    @property
    def slot(self) -> Slot:
        return Slot(self.param, self.state, self.index, self.start, self.pitch)


def step(plan: Plan, slots: Sequence[GradSlot], hyper: Hyper, numbers: Scalars) -> None:
    backend.step(*_prepared(plan, slots), hyper, numbers)


def aligned(plan: Plan, slots: Sequence[GradSlot], hyper: Hyper, numbers: Scalars) -> torch.Tensor:
    return backend.aligned(*_prepared(plan, slots), hyper, numbers)


def absmax(plan: Plan, slots: Sequence[GradSlot], hyper: Hyper, numbers: Scalars) -> torch.Tensor:
    return backend.absmax(*_prepared(plan, slots), hyper, numbers)


def _prepared(plan: Plan, slots: Sequence[GradSlot]) -> tuple[backend.Prepared, list[torch.Tensor]]:
    grads = [each.grad for each in slots]
    return backend.prepare(plan, [each.slot for each in slots], grads), grads


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


def step_one(plan: Plan, slot: GradSlot, hyper: Hyper, numbers: Scalars) -> int:
    """A step of one slot; how many elements were skipped comes back. A tensor-wise scale is stored after it."""
    if plan.format.tensor_wise:
        largest = absmax(plan, [slot], hyper, numbers)
        numbers = Scalars(numbers.lr, numbers.keep, numbers.grad_scale, numbers.step, numbers.skipped, largest)
        step(plan, [slot], hyper, numbers)
        usable = largest > 2.0**-100
        slot.state["exp_avg_scale"].copy_(torch.where(usable, largest / torch.full_like(largest, plan.format.top), 0.0))
    else:
        step(plan, [slot], hyper, numbers)
    return int(numbers.skipped.item())
