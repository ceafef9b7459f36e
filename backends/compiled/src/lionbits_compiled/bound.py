"""Slots with the gradient of the present call, from which matrices are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lionbits_reference import slices
from lionbits_reference.spec import Format, Slot


class BoundSlot:
    """A slot, with its gradient during a call. It keeps no tensor of the slot.

    Args:
        slot: as it was prepared.
        grad: of the slot's shape.
    """

    def __init__(self, slot: Slot, grad: Tensor) -> None:
        self.slot = slot
        self.index, self.start, self.row_pitch = slot.index, slot.start, slot.row_pitch
        self._grad: Tensor | None = grad

    @property
    def param(self) -> Tensor:
        """Parameter of the slot."""
        return self.slot.param

    @property
    def state(self) -> Mapping[str, Any]:
        """State of the slot."""
        return self.slot.state

    @property
    def grad(self) -> Tensor:
        """Gradient of the present call."""
        assert self._grad is not None
        return self._grad

    def take(self, grad: Tensor | None) -> None:
        """Set the gradient; None ends the call."""
        self._grad = grad

    def rows(self, format: Format, first: int, last: int) -> BoundSlot:
        """Return rows ``first`` to ``last``."""
        return BoundSlot(slices.rows(self.slot, format, first, last), self.grad[first:last])

    def columns(self, format: Format, first: int, last: int) -> BoundSlot:
        """Return elements ``first`` to ``last`` of a slot that can be seen as one row."""
        part = slices.columns(self.slot, format, first, last)
        return BoundSlot(part, slices.column_part(self.grad, first, last))

    def cut(self, format: Format, limit: int) -> Iterator[BoundSlot]:
        """Yield pieces of at most ``limit`` elements."""
        for slot, grad in slices.cut(self.slot, self.grad, format, limit):
            yield BoundSlot(slot, grad)


@contextmanager
def bound(slots: Sequence[BoundSlot], grads: Sequence[Tensor]) -> Iterator[None]:
    """Give the slots their gradients for the duration of a call."""
    for slot, grad in zip(slots, grads, strict=True):
        slot.take(grad)
    try:
        yield
    finally:
        for slot in slots:
            slot.take(None)
