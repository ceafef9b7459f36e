"""The backend ``cpp``: one call of a C++ library for all slots, equal to the reference bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lionbits_reference.spec import Format, Hyper, Plan, Scalars, Slot
from lionbits_table import codec

from . import library, self_test
from .launch import Prepared, call, hyper_numbers, scalar_addresses, table

name = "cpp"


def supports(plan: Plan, device: torch.device) -> str:
    """Empty, or the reason why not: all plans are served, on the CPU, where a library was built for it."""
    del plan
    if device.type != "cpu":
        return f"C++ kernels run on the CPU, not on {device.type}"
    wrong = library.obstacle() or self_test.failure(prepare, step)
    return wrong and f"{wrong}. {library.WAY_OUT}"


def prepare(plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]) -> Prepared:
    """Make the slot table: see :meth:`lionbits_reference.spec.Backend.prepare`."""
    return Prepared.of(plan, table(plan, slots, grads))


def step(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> None:
    """Update all slots: see :meth:`lionbits_reference.spec.Backend.step`."""
    prepared.table.bind(grads)
    call("lionbits_step", prepared, hyper_numbers(hyper), scalar_addresses(scalars))
    prepared.table.release()


def aligned(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> Tensor:
    """Count aligned elements: see :meth:`lionbits_reference.spec.Backend.aligned`."""
    counts = torch.zeros(len(grads), dtype=torch.int64, device="cpu")
    prepared.table.bind(grads)
    call("lionbits_aligned", prepared, hyper_numbers(hyper), scalars.grad_scale, counts)
    return counts


def absmax(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> Tensor:
    """Find the largest new momentum of each slot: see :meth:`lionbits_reference.spec.Backend.absmax`."""
    bits = torch.zeros(len(grads), dtype=torch.int32, device="cpu")
    prepared.table.bind(grads)
    call("lionbits_absmax", prepared, hyper_numbers(hyper), scalars.grad_scale, bits)
    return bits.view(torch.float32)


def encode(format: Format, momentum: Tensor) -> dict[str, Tensor]:
    """State tensors of ``format`` for a float32 ``momentum`` of any shape, rounded to nearest."""

    def launched(plan: Plan, slot: Slot, grad: Tensor, largest: Tensor) -> None:
        call("lionbits_encode", _bound(plan, slot, grad), largest)

    return codec.encode(format, momentum, launched)


def decode(format: Format, state: Mapping[str, Any], shape: Sequence[int]) -> Tensor:
    """float32 momentum of ``shape``, contiguous."""

    def launched(plan: Plan, slot: Slot) -> None:
        call("lionbits_decode", _bound(plan, slot, slot.param))

    return codec.decode(format, state, shape, launched)


def _bound(plan: Plan, slot: Slot, grad: Tensor) -> Prepared:
    """One slot, ready for a call."""
    one = prepare(plan, [slot], [grad])
    one.table.bind([grad])
    return one
