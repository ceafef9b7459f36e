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
    """Return an empty string, or the reason why not: all plans are served, on the CPU, if there is a C++ compiler."""
    del plan
    if device.type != "cpu":
        return (
            f"it has been tried on the CPU only, not on {device.type}: there Inductor may fuse a multiplication "
            f"with an addition, which rounds once where Lion rounds twice"
        )
    return compiling.obstacle()


def prepare(plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]) -> Prepared:
    """Sort the slots into matrices, which are kept for the calls to come."""
    bound_slots = [BoundSlot(slot, grad) for slot, grad in zip(slots, grads, strict=True)]
    with bound(bound_slots, grads):
        return Prepared(plan, bound_slots)


def step(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> None:
    """Update each matrix by the compiled functions."""
    plan = prepared.plan
    numbers = Numbers(prepared, hyper, scalars)
    drawing = plan.draws_for_param or (plan.format.quantised and hyper.rounding != "nearest")
    with bound(prepared.slots, grads):
        for matrix in prepared.matrices(drawing=drawing):
            if isinstance(matrix, Matrix):
                matrix.fetch()
                steps.step(prepared, matrix, hyper, numbers)
                matrix.write_back()
            else:  # elements around number 2^33 of a parameter
                place, part = matrix
                alone = reference.prepare(plan, [part.slot], [part.grad])
                reference.step(alone, [part.grad], hyper, scalars.part(slice(place, place + 1)))


def aligned(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> Tensor:
    """Count the aligned elements of each slot."""
    counts = torch.zeros(len(grads), dtype=torch.int64, device="cpu")
    for matrix, found in _count("aligned", prepared, grads, hyper, scalars):
        counts.index_add_(0, matrix.owner_places, found.to(torch.int64))
    return counts


def absmax(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> Tensor:
    """Return the largest new magnitude of momentum of each slot."""
    largest = torch.zeros(len(grads), dtype=torch.float32, device="cpu")
    for matrix, found in _count("absmax", prepared, grads, hyper, scalars):
        largest.scatter_reduce_(0, matrix.owner_places, found, "amax")
    return largest


def _count(
    kind: str, prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars
) -> Iterator[tuple[Matrix, Tensor]]:
    """Yield matrices, with a number for each of their rows."""
    numbers = Numbers(prepared, hyper, scalars)
    with bound(prepared.slots, grads):
        for matrix in prepared.matrices(drawing=False):
            assert isinstance(matrix, Matrix)
            matrix.fetch()
            yield matrix, steps.count(kind, prepared, matrix, numbers)
