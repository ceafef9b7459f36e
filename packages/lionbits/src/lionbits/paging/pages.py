"""How state is cut into pages, and how a page's bytes lie on the device while it passes through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lionbits_reference import slices
from lionbits_reference.spec import Plan, Slot, TensorSpec, matrix_shape

from . import host

#: Frames on the device that pages pass through: one is updated, one arrives, one leaves.
FRAMES = 3

#: What columns are cut at where the format has no blocks; even, so that pairs of lanes stay together.
_COLUMNS = 256


class Piece(NamedTuple):
    """A slot of a call, or some of its rows, or some columns of its only row."""

    place: int
    axis: str  # "whole", "rows" or "columns"
    first: int = 0
    last: int = 0

    def of(self, plan: Plan, slots: Sequence[Slot]) -> Slot:
        """The slot itself, or a slot of views."""
        slot = slots[self.place]
        if self.axis == "whole":
            return slot
        cut = slices.rows if self.axis == "rows" else slices.columns
        return cut(slot, plan.format, self.first, self.last)


@dataclass(frozen=True)
class Page:
    """Pieces whose state is brought together.

    Attributes:
        pieces: in the order of the call.
        size: bytes on the device.
    """

    pieces: tuple[Piece, ...]
    size: int

    @property
    def places(self) -> list[int]:
        """The slots that the pieces are of; no slot has two pieces in a page."""
        return [piece.place for piece in self.pieces]


@dataclass
class Visit:
    """A page on the device: its slots, whose state is in a frame, and the bytes that go there and back."""

    slots: list[Slot]
    copies: list[tuple[Tensor, Tensor]]  # in the frame, on the host

    def bring(self) -> None:
        """Host to frame."""
        for near, far in self.copies:
            near.copy_(far, non_blocking=True)

    def take_back(self) -> None:
        """Frame to host."""
        for near, far in self.copies:
            far.copy_(near, non_blocking=True)


def cut(plan: Plan, slots: Sequence[Slot], places: Sequence[int], page_size: int) -> list[Page]:
    """The state of these slots in pages of ``page_size`` bytes, larger only where one row is."""
    pages: list[Page] = []
    pieces: list[Piece] = []
    total = 0
    for place in places:
        for piece, size in _pieces(plan, slots[place], place, page_size):
            if pieces and (total + size > page_size or pieces[-1].place == place):
                pages.append(Page(tuple(pieces), total))
                pieces, total = [], 0
            pieces.append(piece)
            total += size
    if pieces:
        pages.append(Page(tuple(pieces), total))
    return pages


def visit(plan: Plan, slots: Sequence[Slot], page: Page, frame: Tensor) -> Visit:
    """The page's slots with state in ``frame``: bytes on the device, at least as many as the page has."""
    parts = [piece.of(plan, slots) for piece in page.pieces]
    near: list[dict[str, Tensor]] = [{} for _ in parts]
    copies: list[_Copy] = []
    at = 0
    for key in moving(plan):  # as on the host, where tensors of one kind are neighbours
        for part, found in zip(parts, near, strict=True):
            far = part.state[key]
            begin = at
            found[key], at = host.carve(frame, at, TensorSpec(tuple(far.shape), far.dtype))
            copies.append(_Copy(found[key], far, begin))
    there = [replace(p, state={**p.state, **f}, pitch=p.row_pitch) for p, f in zip(parts, near, strict=True)]
    return Visit(there, list(_joined(copies, frame)))


def moving(plan: Plan) -> list[str]:
    """State that moves. One scale for a whole tensor stays where its parameter is."""
    return [key for key in plan.state_spec(()) if not (key == "exp_avg_scale" and plan.format.tensor_wise)]


def state_size(plan: Plan, shape: Sequence[int]) -> int:
    """Bytes that the moving state of a parameter takes."""
    specs = plan.state_spec(shape)
    return host.size({key: specs[key] for key in moving(plan)})


def _pieces(plan: Plan, slot: Slot, place: int, page_size: int) -> Iterator[tuple[Piece, int]]:
    shape = tuple(slot.param.shape)
    whole = state_size(plan, shape)
    rows, columns = matrix_shape(shape)
    if whole <= page_size or (rows == 1 and not (slot.param.dim() <= 1 or slot.param.is_contiguous())):
        yield Piece(place, "whole"), whole
        return
    axis, unit, count = "rows", 1, rows
    if rows == 1:
        axis, unit, count = "columns", plan.format.block_size or _COLUMNS, columns
    step = max(page_size // (state_size(plan, (1, unit) if rows == 1 else (1, columns)) or 1), 1) * unit
    for first in range(0, count, step):
        last = min(first + step, count)
        taken = state_size(plan, (1, last - first) if rows == 1 else (last - first, *shape[1:]))
        yield Piece(place, axis, first, last), taken


class _Copy(NamedTuple):
    near: Tensor
    far: Tensor
    begin: int  # in the frame, in bytes

    def follows(self, before: _Copy) -> bool:
        """Whether the two lie on the host as they do in the frame."""
        together = self.far.untyped_storage().data_ptr() == before.far.untyped_storage().data_ptr()
        return together and self.far.data_ptr() - before.far.data_ptr() == self.begin - before.begin


def _joined(copies: Sequence[_Copy], frame: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Copies of neighbours as one copy: pairs of bytes in the frame and on the host."""
    runs: list[list[_Copy]] = []
    for copy in copies:
        if not copy.far.is_contiguous():
            yield copy.near, copy.far
        elif runs and copy.follows(runs[-1][-1]):
            runs[-1].append(copy)
        else:
            runs.append([copy])
    for first, *_, last in ([*run, run[-1]] for run in runs):
        end = last.begin + last.far.nbytes
        memory = torch.empty(0, dtype=torch.uint8, device=first.far.device)
        begin = first.far.storage_offset() * first.far.itemsize
        memory.set_(first.far.untyped_storage(), begin, (end - first.begin,), (1,))
        yield frame[first.begin : end], memory
