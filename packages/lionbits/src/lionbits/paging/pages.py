"""How state is cut into pages, and how a page's bytes lie where the update runs while it passes through."""

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
        size: bytes in a frame.
    """

    pieces: tuple[Piece, ...]
    size: int

    @property
    def places(self) -> list[int]:
        """The slots that the pieces are of; no slot has two pieces in a page."""
        return [piece.place for piece in self.pieces]


@dataclass
class Visit:
    """A page in a frame: its slots, for which what travels is there, and the bytes that go there and back."""

    slots: list[Slot]
    copies: list[tuple[Tensor, Tensor]]  # in the frame, at home
    back: list[tuple[Tensor, Tensor]]  # likewise

    def bring(self) -> None:
        """From home to the frame."""
        for near, far in self.copies:
            near.copy_(far, non_blocking=True)

    def take_back(self) -> None:
        """From the frame to home."""
        for near, far in self.back:
            far.copy_(near, non_blocking=True)

    @property
    def bytes_back(self) -> int:
        """What :meth:`take_back` copies."""
        return sum(near.nbytes for near, _ in self.back)


def cut(
    plan: Plan, slots: Sequence[Slot], places: Sequence[int], page_size: int, compute: str = "device"
) -> list[Page]:
    """What travels of these slots in pages of ``page_size`` bytes, larger only where one row is.

    Args:
        plan: of the slots.
        slots: of a call.
        places: of those that are cut.
        page_size: bytes.
        compute: where the update runs: to the ``"device"`` travels state, to the ``"host"`` parameter and gradient.
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


def visit(plan: Plan, slots: Sequence[Slot], page: Page, frame: Tensor, compute: str = "device") -> Visit:
    """The page's slots with what travels in ``frame``: bytes, at least as many as the page has."""
    parts = [piece.of(plan, slots) for piece in page.pieces]
    near: list[dict[str, Tensor]] = [{} for _ in parts]
    copies: list[_Copy] = []
    at = 0
    for key in _travelling(plan, (), compute):  # as on the host, where tensors of one kind are neighbours
        for part, found in zip(parts, near, strict=True):
            far = part.state[key] if compute == "device" else getattr(part, key)
            begin = at
            found[key], at = host.carve(frame, at, TensorSpec(tuple(far.shape), far.dtype))
            copies.append(_Copy(key, found[key], far, begin, *host.place(far)))
    if compute == "host":
        there = [
            replace(part, param=found["param"], grad=found["grad"], pitch=part.row_pitch)
            for part, found in zip(parts, near, strict=True)
        ]
        back = [copy for copy in copies if copy.key != "grad"]
        return Visit(there, list(_joined(copies, frame)), list(_joined(back, frame)))
    there = [replace(p, state={**p.state, **f}, pitch=p.row_pitch) for p, f in zip(parts, near, strict=True)]
    joined = list(_joined(copies, frame))
    return Visit(there, joined, joined)


def moving(plan: Plan) -> list[str]:
    """State that moves. One scale for a whole tensor stays where its parameter is."""
    return [key for key in plan.state_spec(()) if not (key == "exp_avg_scale" and plan.format.tensor_wise)]


def _travelling(plan: Plan, shape: Sequence[int], compute: str) -> dict[str, TensorSpec]:
    """What travels of a parameter, so that it meets the rest where the update runs."""
    if compute == "host":
        return {
            "param": TensorSpec(tuple(shape), plan.param_dtype),
            "grad": TensorSpec(tuple(shape), plan.grad_dtype),
        }
    specs = plan.state_spec(shape)
    return {key: specs[key] for key in moving(plan)}


def _pieces(plan: Plan, slot: Slot, place: int, page_size: int, compute: str) -> Iterator[tuple[Piece, int]]:
    def size(*shape: int) -> int:
        return host.size(_travelling(plan, shape, compute))

    shape = tuple(slot.param.shape)
    whole = size(*shape)
    rows, columns = matrix_shape(shape)
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


class _Copy(NamedTuple):
    key: str
    near: Tensor
    far: Tensor
    begin: int  # in the frame, in bytes
    memory: torch.UntypedStorage  # in which it lies at home,
    at: int  # from this byte on

    def follows(self, before: _Copy) -> bool:
        """Whether the two lie on the host as they do in the frame."""
        mine, other = self.memory, before.memory  # the first tensor of a page begins where the page does
        together = mine.data_ptr() == other.data_ptr() and mine.nbytes() == other.nbytes()
        return together and self.at - before.at == self.begin - before.begin


def _joined(copies: Sequence[_Copy], frame: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Copies of neighbours as one copy: pairs of bytes in the frame and on the host."""
    runs: list[list[_Copy]] = []
    for copy in copies:
        if not copy.far.is_contiguous() or copy.far.is_neg():  # the sign of a negated view is not in its bytes
            yield copy.near, copy.far
        elif runs and copy.follows(runs[-1][-1]):
            runs[-1].append(copy)
        else:
            runs.append([copy])
    for first, *_, last in ([*run, run[-1]] for run in runs):
        end = last.begin + last.far.nbytes
        memory = torch.empty(0, dtype=torch.uint8, device=first.far.device)
        memory.set_(first.memory, first.at, (end - first.begin,), (1,))
        yield frame[first.begin : end], memory
