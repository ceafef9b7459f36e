"""Pages in staging buffers: the slots that backends see, and the copies that fill and empty the buffer.

A staged page is made once, and kept with what the backend prepared for it. It keeps only the buffer alive: tensors
that are not staged are found through the slots at each use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lionbits_reference.spec import Backend, Plan, Prepared, Slot, TensorSpec

from . import host_memory
from .pages import Page, Piece, travelling

#: Pairs of tensors, or of their bytes: in the buffer, and at home.
Pairs = list[tuple[Tensor, Tensor]]


class Copies(NamedTuple):
    """The copies of one pass over a page."""

    arriving: Pairs
    leaving: Pairs

    def fill(self) -> None:
        """Copy from the pages' memory to the buffer."""
        for staged, home in self.arriving:
            staged.copy_(home, non_blocking=True)

    def empty(self) -> None:
        """Copy from the buffer to the pages' memory."""
        for staged, home in self.leaving:
            home.copy_(staged, non_blocking=True)

    @property
    def bytes_leaving(self) -> int:
        """Bytes that :meth:`empty` copies."""
        return sum(staged.nbytes for staged, _ in self.leaving)


class StagedSlot(Slot):
    """A piece of a slot with some tensors in a buffer. The others are views, made on each access.

    Args:
        piece: makes the piece, of views.
        staged: its tensors in the buffer, by name.
    """

    def __init__(self, piece: Callable[[], Slot], staged: Mapping[str, Tensor]) -> None:
        now = piece()
        kept = {"index": now.index, "start": now.start, "pitch": now.pitch, "_piece": piece, "_staged": staged}
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    _piece: Callable[[], Slot]
    _staged: Mapping[str, Tensor]

    @property
    def param(self) -> Tensor:
        """Parameter of the slot: staged, or a view."""
        return self._staged["param"] if "param" in self._staged else self._piece().param

    @property
    def state(self) -> Mapping[str, Any]:
        """State of the slot: the staged tensors in place of the views."""
        return {**self._piece().state, **self._staged}


class StagedPage:
    """A page in a staging buffer.

    Args:
        backend: that updates it.
        plan, slots: of the launch group.
        page: that is staged.
        grads: of the slots, like those to come.
        buffer: uint8, at least as long as the page.
        compute: where the update runs: on the ``"device"`` state is staged, on the ``"host"`` parameter and gradient.
    """

    def __init__(
        self,
        backend: Backend,
        plan: Plan,
        slots: Sequence[Slot],
        page: Page,
        grads: Sequence[Tensor],
        buffer: Tensor,
        compute: str,
    ) -> None:
        self._backend, self._plan, self._slots, self._pieces = backend, plan, slots, page.pieces
        self._buffer, self._stages_state = buffer, compute == "device"
        self._staged: list[dict[str, Tensor]] = [{} for _ in page.pieces]
        self._begins: list[tuple[str, int, int]] = []  # what lies in the buffer: its name, its piece, its first byte
        at = 0
        for key in travelling(plan, (), compute):  # in the order at home, where tensors of one kind are neighbours
            for j, piece in enumerate(page.pieces):
                home = _home(self._plan, self._slots, piece, key, grads)
                self._begins.append((key, j, at))
                self._staged[j][key], at = host_memory.carve(buffer, at, TensorSpec(tuple(home.shape), home.dtype))
        self._state = list(self._joined(())) if self._stages_state else []
        self._prepared: Prepared = None

    @property
    def slots(self) -> list[Slot]:
        """The pieces, as backends see them."""
        return [
            StagedSlot(partial(piece.slot, self._plan, self._slots), {k: t for k, t in staged.items() if k != "grad"})
            for piece, staged in zip(self._pieces, self._staged, strict=True)
        ]

    def call(self, grads: Sequence[Tensor]) -> tuple[Prepared, list[Tensor]]:
        """Return what the backend prepared for this page, and the gradients of its pieces.

        Args:
            grads: of all slots.
        """
        if self._stages_state:
            own = [piece.grad(grads) for piece in self._pieces]
        else:
            own = [staged["grad"] for staged in self._staged]
        if self._prepared is None:
            self._prepared = self._backend.prepare(self._plan, self.slots, own)
        return self._prepared, own

    def copies(self, grads: Sequence[Tensor]) -> Copies:
        """The copies of a pass. Gradients are not copied back."""
        if self._stages_state:
            state = [(staged, home()) for staged, home in self._state]
            return Copies(state, state)
        arriving, leaving = self._joined(grads), self._joined(grads, ("grad",))
        return Copies([(staged, home()) for staged, home in arriving], [(staged, home()) for staged, home in leaving])

    def _joined(
        self, grads: Sequence[Tensor], leaving_out: Sequence[str] = ()
    ) -> Iterator[tuple[Tensor, Callable[[], Tensor]]]:
        """Yield the copies of a page; tensors that are neighbours at both ends are joined to one run of bytes.

        Each copy is a tensor in the buffer, and a function that returns the same bytes at home.
        """
        runs: list[list[_Copy]] = []
        for key, j, begin in self._begins:
            if key in leaving_out:
                continue
            piece = self._pieces[j]
            home = _home(self._plan, self._slots, piece, key, grads)
            memory, at = host_memory.place(home)
            copy = _Copy(key, piece, home.nbytes, begin, (memory.data_ptr(), memory.nbytes()), at)
            lies = memory.data_ptr() == _memory(self._slots, piece, key, grads).data_ptr()
            if not lies or not home.is_contiguous() or home.is_neg():  # the sign of a negated view is not in its bytes
                yield self._staged[j][key], partial(_home, self._plan, self._slots, piece, key, grads)
            elif runs and copy.follows(runs[-1][-1]):
                runs[-1].append(copy)
            else:
                runs.append([copy])
        for run in runs:
            first, last = run[0], run[-1]
            end = last.begin + last.size
            memory_of = partial(_memory, self._slots, first.piece, first.key, grads)
            yield self._buffer[first.begin : end], partial(_bytes, memory_of, first.at, end - first.begin)


def _home(plan: Plan, slots: Sequence[Slot], piece: Piece, key: str, grads: Sequence[Tensor]) -> Tensor:
    """The piece's tensor of this name, where it stays."""
    if key == "grad":
        return piece.grad(grads)
    slot = piece.slot(plan, slots)
    found: Tensor = slot.param if key == "param" else slot.state[key]
    return found


def _memory(slots: Sequence[Slot], piece: Piece, key: str, grads: Sequence[Tensor]) -> torch.UntypedStorage:
    """Return the memory that holds this tensor of the piece at home."""
    slot = slots[piece.place]
    whole: Tensor = grads[piece.place] if key == "grad" else slot.param if key == "param" else slot.state[key]
    return host_memory.place(whole)[0] if piece.axis == "whole" else whole.untyped_storage()


class _Copy(NamedTuple):
    key: str
    piece: Piece
    size: int  # in bytes
    begin: int  # in the buffer, in bytes
    memory: tuple[int, int]  # address and bytes of the memory in which it lies at home,
    at: int  # from this byte on

    def follows(self, before: _Copy) -> bool:
        """True if the two have the same distance at home as in the buffer."""
        return self.memory == before.memory and self.at - before.at == self.begin - before.begin


def _bytes(memory: Callable[[], torch.UntypedStorage], at: int, size: int) -> Tensor:
    """Return ``size`` bytes of a memory from ``at`` on: uint8."""
    found = memory()
    return torch.empty(0, dtype=torch.uint8, device=found.device).set_(found, at, (size,), (1,))
