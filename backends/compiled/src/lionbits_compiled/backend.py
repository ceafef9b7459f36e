"""The backend ``compiled``: the reference through Inductor, over matrices of blocks, equal to it bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lionbits_reference import backend as reference
from lionbits_reference.backend import decode, encode
from lionbits_reference.spec import Batch, Hyper, Plan, Scalars, Slot

from . import compiling, steps
from .matrices import Matrix
from .numbers import Numbers
from .work import Work

__all__ = ["absmax", "aligned", "decode", "encode", "name", "step", "supports"]

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


def step(plan: Plan, slots: Sequence[Slot], hyper: Hyper, scalars: Scalars) -> None:
    """See :meth:`lionbits_reference.spec.Backend.step`."""
    work = _work(plan, slots)
    numbers = Numbers(work, hyper, scalars)
    drawing = plan.draws_for_param or (plan.format.quantised and hyper.rounding != "nearest")
    for matrix in work.matrices(slots, drawing=drawing):
        if isinstance(matrix, Matrix):
            matrix.fetch()
            steps.step(work, matrix, hyper, numbers)
            matrix.bring_back()
        else:  # elements around number 2^33 of a parameter
            place, part = matrix
            reference.step(plan, [part], hyper, scalars.part(slice(place, place + 1)))


def aligned(plan: Plan, slots: Sequence[Slot], hyper: Hyper, scalars: Scalars) -> Tensor:
    """See :meth:`lionbits_reference.spec.Backend.aligned`."""
    counts = torch.zeros(len(slots), dtype=torch.int64, device="cpu")
    for matrix, found in _count("aligned", plan, slots, hyper, scalars):
        counts.index_add_(0, matrix.owner_places, found.to(torch.int64))
    return counts


def absmax(plan: Plan, slots: Sequence[Slot], hyper: Hyper, scalars: Scalars) -> Tensor:
    """See :meth:`lionbits_reference.spec.Backend.absmax`."""
    largest = torch.zeros(len(slots), dtype=torch.float32, device="cpu")
    for matrix, found in _count("absmax", plan, slots, hyper, scalars):
        largest.scatter_reduce_(0, matrix.owner_places, found, "amax")
    return largest


def _count(
    kind: str, plan: Plan, slots: Sequence[Slot], hyper: Hyper, scalars: Scalars
) -> Iterator[tuple[Matrix, Tensor]]:
    """Matrices, and what was found for each of their rows."""
    work = _work(plan, slots)
    numbers = Numbers(work, hyper, scalars)
    for matrix in work.matrices(slots, drawing=False):
        assert isinstance(matrix, Matrix)
        matrix.fetch()
        yield matrix, steps.count(kind, work, matrix, numbers)


def _work(plan: Plan, slots: Sequence[Slot]) -> Work:
    """What a batch keeps from call to call."""
    kept = slots.memo if isinstance(slots, Batch) else {}
    work: Work | None = kept.get(name)
    if work is None:
        work = kept[name] = Work(plan, slots)
    return work
