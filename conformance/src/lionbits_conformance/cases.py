"""One call of a backend, described by a few numbers that print as the code that makes it again.

A case says (kind, magnitude, seed, shape) of its tensors instead of holding elements, so a failure shrinks to a kind
and a shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import lionbits_reference as reference
from lionbits_reference import formats, rounding
from lionbits_reference.spec import (
    Backend,
    Hyper,
    Plan,
    Prepared,
    Scalars,
    Slot,
    decay_factor,
    float32,
    matrix_shape,
)

from . import values
from .placing import collapsed, like, place

_CPU = torch.device("cpu")

#: What becomes of the gradients between two updates: nothing; other numbers in the same tensors, as accumulation and
#: ``zero_grad(set_to_none=False)`` write them; other tensors with other numbers.
RENEWALS = ("same", "rewritten", "new")


@dataclass(frozen=True)
class TensorCase:
    """A parameter with its gradient and momentum.

    Attributes:
        shape: of all three; or of the rectangle that there is of a wider parameter.
        kind, momentum_kind, param_kind: of the numbers in the gradient, momentum and parameter.
        magnitude: gradient and momentum are multiplied by two to this power, where that has a meaning.
        seed: of all that is drawn.
        layout, grad_layout: of the parameter and the gradient in memory.
        start: counting position of the first element: as if a part of a parameter.
        beyond: counting positions by which the parameter's rows are longer than this rectangle's; even.
    """

    shape: tuple[int, ...]
    kind: str = "normal"
    momentum_kind: str = "normal"
    magnitude: int = 0
    seed: int = 0
    layout: str = "contiguous"
    grad_layout: str = "contiguous"
    start: int = 0
    param_kind: str = "normal"
    beyond: int = 0

    @property
    def pitch(self) -> int | None:
        """What the slot is given: None where the rectangle is as wide as its parameter, or all of one row."""
        rows, columns = matrix_shape(self.shape)
        return columns + columns % 2 + self.beyond if self.beyond and rows == self.shape[0] else None


@dataclass(frozen=True)
class Case:
    """A call: a plan, its tensors, and the numbers. Slot j's learning rate, scale and step differ from slot 0's.

    ``index`` is the position of the first parameter among all, ``skipped`` how many elements were skipped before,
    ``renewal`` one of :data:`RENEWALS`.
    """

    plan: Plan
    tensors: tuple[TensorCase, ...]
    betas: tuple[float, float] = (0.9, 0.99)
    rounding: str = "dithered"
    seed: int = 0
    lr: float = 1e-3
    weight_decay: float = 0.0
    grad_scale: float = 1.0
    step: int = 1
    updates: int = 1
    index: int = 1
    skipped: int = 0
    renewal: str = "same"

    @property
    def hyper(self) -> Hyper:
        """The numbers that all slots share."""
        return Hyper.of(self.betas, self.seed, self.rounding)


@dataclass
class Call:
    """A case made real: arguments for a backend, and the buffers behind them."""

    case: Case
    slots: list[Slot]
    grads: list[Tensor]
    scalars: Scalars
    buffers: dict[str, Tensor] = field(default_factory=dict)
    bases: list[Tensor] = field(default_factory=list)  # the gradients before they were expanded

    def results(self) -> dict[str, Tensor]:
        """All that a call may write, and all that it may not: whole buffers, and the skip count."""
        return {**self.buffers, "skipped": self.scalars.skipped}


def build(case: Case, device: torch.device = _CPU) -> Call:
    """Make the case's tensors; the same bits each time."""
    call = Call(case, [], [], scalars(case, device))
    for j, tensor in enumerate(case.tensors):
        slot, base = _slot(call.buffers, case, j, tensor, device)
        call.slots.append(slot)
        call.bases.append(base)
        call.grads.append(base.expand(tensor.shape))
    return call


def scalars(case: Case, device: torch.device = _CPU) -> Scalars:
    """Per-slot numbers; no two slots have the same, so that a mixed-up index shows."""
    k = range(len(case.tensors))
    rates = [float32(case.lr * (1 + j / 8)) for j in k]
    numbers = {
        "lr": rates,
        "keep": [decay_factor(lr, case.weight_decay) for lr in rates],
        "grad_scale": [grad_scale(case, j) for j in k],
    }
    vectors = {key: torch.tensor(value, dtype=torch.float32, device=device) for key, value in numbers.items()}
    steps = torch.tensor([case.step + j for j in k], dtype=torch.int64, device=device)
    return Scalars(**vectors, step=steps, skipped=torch.tensor([case.skipped], device=device))


def grad_scale(case: Case, j: int) -> float:
    """What slot j's gradient is multiplied by."""
    return float32(case.grad_scale * (1 - 2 * (j % 2)) * (1 + j // 2))


def run(backend: Backend, case: Case, device: torch.device = _CPU, order: Sequence[slice] | None = None) -> Call:
    """Build the case and let the backend make its updates, all slots at once or in the runs of ``order``."""
    call = build(case, device)
    update(backend, call, order or [slice(0, len(call.slots))])
    return call


def update(backend: Backend, call: Call, order: Sequence[slice]) -> None:
    """Let the backend make a case's updates in these runs of slots: prepared once, stepped as often as it says."""
    prepared = [(at, backend.prepare(call.case.plan, call.slots[at], call.grads[at])) for at in order]
    step(backend, call, prepared)


def step(backend: Backend, call: Call, prepared: Sequence[tuple[slice, Prepared]]) -> None:
    """Step as often as the case says, with what was prepared for these runs of slots."""
    case = call.case
    for i in range(case.updates):
        renew(call, i)
        numbers = call.scalars
        if case.plan.format.tensor_wise:
            absmax = [backend.absmax(made, call.grads[at], case.hyper, numbers.part(at)) for at, made in prepared]
            numbers = replace(numbers, absmax=torch.cat(absmax))
        for at, made in prepared:
            backend.step(made, call.grads[at], case.hyper, numbers.part(at))
        store_scales(case.plan, call.slots, numbers)
        call.scalars.step.add_(1)


def renew(call: Call, i: int) -> None:
    """Make the gradients of update ``i``: those of the first, in another order and with other signs."""
    if i == 0 or call.case.renewal == "same":
        return
    for j, base in enumerate(call.bases):
        numbers = base.reshape(-1).roll(2 * i + 1).neg().view(base.shape)
        if call.case.renewal == "new":
            call.bases[j] = like(base, 0)
            call.grads[j] = call.bases[j].expand(call.grads[j].shape)
        call.bases[j].copy_(numbers)


def store_scales(plan: Plan, slots: Sequence[Slot], numbers: Scalars) -> None:
    """What a caller owes a tensor-wise format: the new scale, once every part of the tensor is through."""
    if numbers.absmax is None:
        return
    for slot, scale in zip(slots, formats.block_scale(numbers.absmax, plan.format), strict=True):
        slot.state["exp_avg_scale"].copy_(scale)


def _slot(
    buffers: dict[str, Tensor], case: Case, j: int, tensor: TensorCase, device: torch.device
) -> tuple[Slot, Tensor]:
    plan, shape = case.plan, tensor.shape
    momentum = values.values(tensor.momentum_kind, tensor.magnitude, shape, tensor.seed + 1)
    momentum = torch.where(momentum.isfinite(), momentum, 1.0)  # what an optimizer that skips never holds
    state: dict[str, Any] = reference.encode(plan.format, momentum)
    held = reference.decode(plan.format, state, shape)
    grad = values.gradient(
        tensor.kind, tensor.magnitude, held, case.betas, tensor.seed, plan.format, grad_scale(case, j)
    )
    if tensor.grad_layout == "expanded":
        grad = collapsed(grad, tensor.seed)
    param = values.parameter(tensor.param_kind, shape, tensor.seed + 2, plan.param_dtype)
    if plan.param_rounding == "compensated":
        dtype = plan.state_spec(shape)["param_residual"].dtype
        master = values.with_low_bits(param, tensor.seed + 3)
        param, state["param_residual"] = rounding.split_master(master, dtype, rounding.NEAREST)
    placed = {key: place(buffers, f"{key}[{j}]", value, "contiguous", device) for key, value in state.items()}
    placed_param = place(buffers, f"param[{j}]", param, tensor.layout, device, tensor.seed)
    base = place(buffers, f"grad[{j}]", grad.to(plan.grad_dtype), tensor.grad_layout, device, tensor.seed)
    return Slot(placed_param, placed, case.index + 3 * j, tensor.start, tensor.pitch), base
