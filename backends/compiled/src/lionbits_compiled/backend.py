"""The backend ``compiled``: the reference through Inductor, over matrices of blocks, equal to it bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lionbits_reference import backend as reference
from lionbits_reference.backend import decode, encode
from lionbits_reference.spec import Hyper, Plan, Scalars, Slot

from . import compiling, steps
from .bound import BoundSlot, bound
from .matrices import Matrix
from .numbers import Numbers
from .prepared import Prepared

__all__ = ["absmax", "aligned", "decode", "encode", "name", "prepare", "step", "supports"]

name = "compiled"


def supports(plan: Plan, device: torch.device) -> str:
    """Empty, or the reason why not: all plans are served, on the CPU, where there is a C++ compiler."""
    del plan
    if device.type != "cpu":
        return (
            f"it has been tried on the CPU only, not on {device.type}: there Inductor may fuse a multiplication "
            f"with an addition, which rounds once where Lion rounds twice"
        )
    return compiling.obstacle()


def prepare(plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]) -> Prepared:
    """See :meth:`lionbits_reference.spec.Backend.prepare`."""
    bound_slots = [BoundSlot(slot, grad) for slot, grad in zip(slots, grads, strict=True)]
    with bound(bound_slots, grads):
        return Prepared(plan, bound_slots)


def step(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> None:
    """See :meth:`lionbits_reference.spec.Backend.step`."""
    plan = prepared.plan
    numbers = Numbers(prepared, hyper, scalars)
    drawing = plan.draws_for_param or (plan.format.quantised and hyper.rounding != "nearest")
    with bound(prepared.slots, grads):
        for matrix in prepared.matrices(drawing=drawing):
            if isinstance(matrix, Matrix):
                matrix.fetch()
                steps.step(prepared, matrix, hyper, numbers)
                matrix.bring_back()
            else:  # elements around number 2^33 of a parameter
                place, part = matrix
                alone = reference.prepare(plan, [part.slot], [part.grad])
                reference.step(alone, [part.grad], hyper, scalars.part(slice(place, place + 1)))


def aligned(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> Tensor:
    """See :meth:`lionbits_reference.spec.Backend.aligned`."""
    counts = torch.zeros(len(grads), dtype=torch.int64, device="cpu")
    for matrix, found in _count("aligned", prepared, grads, hyper, scalars):
        counts.index_add_(0, matrix.owner_places, found.to(torch.int64))
    return counts


def absmax(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> Tensor:
    """See :meth:`lionbits_reference.spec.Backend.absmax`."""
    largest = torch.zeros(len(grads), dtype=torch.float32, device="cpu")
    for matrix, found in _count("absmax", prepared, grads, hyper, scalars):
        largest.scatter_reduce_(0, matrix.owner_places, found, "amax")
    return largest


def _count(
    kind: str, prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars
) -> Iterator[tuple[Matrix, Tensor]]:
    """Matrices, and what was found for each of their rows."""
    numbers = Numbers(prepared, hyper, scalars)
    with bound(prepared.slots, grads):
        for matrix in prepared.matrices(drawing=False):
            assert isinstance(matrix, Matrix)
            matrix.fetch()
            yield matrix, steps.count(kind, prepared, matrix, numbers)
