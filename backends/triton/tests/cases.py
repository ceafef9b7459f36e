"""Slots to try the backend on, and what equality with the reference means: every bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import lionbits_reference as reference
import lionbits_triton as backend
from lionbits_reference.spec import Format, Hyper, Plan, Scalars, Slot

HYPER = Hyper.of((0.9, 0.99), seed=2**63 + 11)
PLAN = Plan(torch.float32, torch.float32, Format.of(8, block_size=32))

Arrange = Callable[[Tensor], Tensor]


def as_it_is(tensor: Tensor) -> Tensor:
    """Contiguous."""
    return tensor


def slot(
    plan: Plan, shape: Sequence[int], seed: int = 0, arrange: Arrange = as_it_is, grad: Arrange = as_it_is
) -> tuple[Slot, Tensor]:
    """A slot with random numbers, and its gradient; ``arrange`` gives a tensor other strides and the same values."""
    generator = torch.Generator().manual_seed(seed)
    param, gradient, momentum = (torch.randn(tuple(shape), generator=generator) for _ in range(3))
    state = reference.encode(plan.format, momentum)
    for key, spec in plan.state_spec(shape).items():
        state.setdefault(key, torch.ones(spec.shape, dtype=spec.dtype))
    return Slot(arrange(param.to(plan.param_dtype)), state, index=seed), grad(gradient.to(plan.grad_dtype))


def mixed(plan: Plan) -> list[tuple[Slot, Tensor]]:
    """Rows of whole tiles, rows with tails, and a gradient with strides of its own."""
    return [
        slot(plan, (3, 512), 0),
        slot(plan, (9, 100), 1),
        slot(plan, (1, 2048), 2),
        slot(plan, (5, 64), 3, grad=lambda grad: grad.t().contiguous().t()),
    ]


def misaligned(plan: Plan) -> list[tuple[Slot, Tensor]]:
    """A gradient at an address that no vector fits."""
    one, grad = slot(plan, (3, 512))
    return [(one, torch.cat((grad.flatten()[:1], grad.flatten()))[1:].view_as(grad))]


def scalars(count: int) -> Scalars:
    """Numbers for so many slots, no two alike."""
    steps = torch.arange(1, count + 1)
    rates = steps.to(torch.float32) / 1024
    return Scalars(rates, 1 - rates, 1 + rates, steps, torch.zeros(1, dtype=torch.int64))


def assert_steps_alike(plan: Plan, make: Callable[[], list[tuple[Slot, Tensor]]], hyper: Hyper = HYPER) -> None:
    """Two updates on the backend and on the reference leave the same bits."""
    for got, want in zip(*(stepped(tested, plan, make, hyper) for tested in (backend, reference)), strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        assert torch.equal(_bytes(got), _bytes(want))


def stepped(
    tested: Any, plan: Plan, make: Callable[[], list[tuple[Slot, Tensor]]], hyper: Hyper = HYPER, updates: int = 2
) -> list[Tensor]:
    """Return all that updates of a backend write."""
    slots, grads = map(list, zip(*make(), strict=True))
    numbers = scalars(len(slots))
    prepared = tested.prepare(plan, slots, grads)
    for _ in range(updates):
        if plan.format.tensor_wise:
            numbers = Scalars(**{**vars(numbers), "absmax": tested.absmax(prepared, grads, hyper, numbers)})
        tested.step(prepared, grads, hyper, numbers)
    return [numbers.skipped, *(t for s in slots for t in (s.param, *s.state.values()))]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    """True if all tensors have the same bits."""
    return all(torch.equal(_bytes(one), _bytes(other)) for one, other in zip(some, others, strict=True))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
