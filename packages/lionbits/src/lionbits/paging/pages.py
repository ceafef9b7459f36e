"""Pages: how tensors that are copied are cut into them, and the layout of a page in a staging buffer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lionbits_reference import slices
from lionbits_reference.spec import Plan, Slot, TensorSpec

from . import host_memory

#: Staging buffers that pages pass through: one is updated, one arrives, one leaves.
STAGING_BUFFERS = 3

#: Columns are cut at its multiples if the format has no blocks; even, so that no pair with one hash is cut.
_COLUMNS = 256


class Piece(NamedTuple):
    """A slot of a launch group, or some of its rows, or some columns of its only row."""

    place: int
    axis: str  # "whole", "rows" or "columns"
    first: int = 0
    last: int = 0

    def slot(self, plan: Plan, slots: Sequence[Slot]) -> Slot:
        """Return the slot itself, or a slot of views."""
        slot = slots[self.place]
        if self.axis == "whole":
            return slot
        cut = slices.rows if self.axis == "rows" else slices.columns
        return cut(slot, plan.format, self.first, self.last)

    def grad(self, grads: Sequence[Tensor]) -> Tensor:
        """Return the slot's gradient, or a view of the same part of it."""
        grad = grads[self.place]
        if self.axis == "whole":
            return grad
        return grad[self.first : self.last] if self.axis == "rows" else slices.column_part(grad, self.first, self.last)


@dataclass(frozen=True)
class Page:
    """Pieces that are copied together.

    Attributes:
        pieces: in the order of the slots; no slot has two pieces in a page.
        size: bytes in a staging buffer.
    """

    pieces: tuple[Piece, ...]
    size: int

    @property
    def places(self) -> list[int]:
        """Places of the slots that the pieces are of."""
        return [piece.place for piece in self.pieces]


def cut(
    plan: Plan, slots: Sequence[Slot], places: Sequence[int], page_size: int, compute: str = "device"
) -> list[Page]:
    """Cut the tensors of these slots that are copied into pages of ``page_size`` bytes, larger only for a longer row.

    Args:
        plan: of the slots.
        slots: of a launch group.
        places: of those that are cut.
        page_size: bytes.
        compute: where the update runs: state is copied to the ``"device"``, parameter and gradient to the ``"host"``.
    """
    pages: list[Page] = []
    pieces: list[Piece] = []
    total = 0
    for place in places:
        for piece, size in _pieces(plan, slots[place], place, page_size, compute):
            if pieces and (total + size > page_size or pieces[-1].place == place):
                pages.append(Page(tuple(pieces), total))
                pieces, total = [], 0
            pieces.append(piece)
            total += size
    if pieces:
        pages.append(Page(tuple(pieces), total))
    return pages


def moving(plan: Plan) -> list[str]:
    """Return the names of state that is copied. One scale for a whole tensor stays where its parameter is."""
    return [key for key in plan.state_spec(()) if not (key == "exp_avg_scale" and plan.format.tensor_wise)]


def travelling(plan: Plan, shape: Sequence[int], compute: str) -> dict[str, TensorSpec]:
    """Return specs of the tensors that are copied for a parameter of this shape, by where the update runs."""
    if compute == "host":
        return {
            "param": TensorSpec(tuple(shape), plan.param_dtype),
            "grad": TensorSpec(tuple(shape), plan.grad_dtype),
        }
    specs = plan.state_spec(shape)
    return {key: specs[key] for key in moving(plan)}


def _pieces(plan: Plan, slot: Slot, place: int, page_size: int, compute: str) -> Iterator[tuple[Piece, int]]:
    def size(*shape: int) -> int:
        return host_memory.size(travelling(plan, shape, compute))

    shape = tuple(slot.param.shape)
    whole = size(*shape)
    rows, columns = slot.matrix
    if whole <= page_size or (rows == 1 and not (slot.param.dim() <= 1 or slot.param.is_contiguous())):
        yield Piece(place, "whole"), whole
        return
    axis, unit, count = "rows", 1, rows
    if rows == 1:
        axis, unit, count = "columns", plan.format.block_size or _COLUMNS, columns
    step = max(page_size // (size(1, unit if rows == 1 else columns) or 1), 1) * unit
    for first in range(0, count, step):
        last = min(first + step, count)
        taken = size(1, last - first) if rows == 1 else size(last - first, *shape[1:])
        yield Piece(place, axis, first, last), taken
