"""Slots with the gradient of the call that is under way: what matrices are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lionbits_reference import slices
from lionbits_reference.spec import Format, Slot


class BoundSlot:
    """A slot, and its gradient while a call is under way. It keeps no tensor of the slot's.

    Args:
        slot: as it was prepared.
        grad: of the slot's shape.
    """

    def __init__(self, slot: Slot, grad: Tensor) -> None:
        self.slot = slot
        self.index, self.start, self.row_pitch, self.matrix = slot.index, slot.start, slot.row_pitch, slot.matrix
        self._grad: Tensor | None = grad

    @property
    def param(self) -> Tensor:
        """See :class:`Slot`."""
        return self.slot.param

    @property
    def state(self) -> Mapping[str, Any]:
        """See :class:`Slot`."""
        return self.slot.state

    @property
    def grad(self) -> Tensor:
        """Of the call that is under way."""
        assert self._grad is not None
        return self._grad

    def take(self, grad: Tensor | None) -> None:
        """Let this be the gradient; None: the call is over."""
        self._grad = grad

    def rows(self, format: Format, first: int, last: int) -> BoundSlot:
        """Rows ``first`` to ``last``."""
        return BoundSlot(slices.rows(self.slot, format, first, last), self.grad[first:last])

    def columns(self, format: Format, first: int, last: int) -> BoundSlot:
        """Elements ``first`` to ``last`` of a slot that is one row, or can be seen as one."""
        part = slices.columns(self.slot, format, first, last)
        return BoundSlot(part, slices.column_part(self.grad, first, last))

    def cut(self, format: Format, limit: int) -> Iterator[BoundSlot]:
        """Pieces of at most so many elements."""
        for slot, grad in slices.cut(self.slot, self.grad, format, limit):
            yield BoundSlot(slot, grad)


@contextmanager
def bound(slots: Sequence[BoundSlot], grads: Sequence[Tensor]) -> Iterator[None]:
    """Let slots have gradients for as long as a call is under way."""
    for slot, grad in zip(slots, grads, strict=True):
        slot.take(grad)
    try:
        yield
    finally:
        for slot in slots:
            slot.take(None)
