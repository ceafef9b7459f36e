"""One call of a backend: its tensors (Slot), their numbers on the device (Scalars), the protocol (Backend)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .format import Format, matrix_shape, rectangle_shape
from .plan import Hyper, Plan


@dataclass(frozen=True, eq=False)
class Slot:
    """One tensor of a call: a whole parameter, or a rectangle of it (a shard, a page, a slice). It has no gradient.

    It may be a subclass that makes ``param`` and ``state`` when asked for them: to change one, make another ``Slot``.

    Attributes:
        param: written in place, strides kept. Any rank; seen as (rows, columns) in logical row-major order, see
            :attr:`matrix`. It may require a gradient: calls are made under ``torch.no_grad``.
        state: what :meth:`Plan.state_spec` names, for this rectangle, written in place; other keys do not matter.
        index: the parameter's position over all groups; the dither depends on it.
        start: counting position, in the whole parameter, of this rectangle's first element; even.
        pitch: counting positions from one row to the next: the whole parameter's columns, rounded up to even.
            None: this rectangle is as wide as the parameter, or a run of elements of a parameter that is one row.
    """

    param: torch.Tensor
    state: Mapping[str, Any]
    index: int
    start: int = 0
    pitch: int | None = None

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns): of a rectangle with a pitch the first dimension and all the rest, however few columns."""
        return matrix_shape(self.param.shape) if self.pitch is None else rectangle_shape(self.param.shape)

    @property
    def row_pitch(self) -> int:
        """``pitch`` with its default filled in; even, so that no pair which shares a hash is in two rows."""
        if self.pitch is not None:
            return self.pitch
        columns = self.matrix[1]
        return columns + columns % 2


@dataclass(frozen=True)
class Scalars:
    """Numbers per slot, on the slots' device, so that nothing waits on the host.

    All fields but ``step``, ``skipped`` and ``absmax`` stay the same as long as the object does: a caller with other
    rates makes another object. A backend that copies them to the host need not copy them again. ``step`` counts on.

    Attributes:
        lr: float32[k], the learning rate after cautious scaling.
        keep: float32[k], 1 - lr*wd with the learning rate as given.
        grad_scale: float32[k], multiplies the gradient: clipping, loss scaling, and -1 to maximize.
        step: int64[k], the number of updates the parameter has had with this one (1 at the first).
        skipped: int64[1], counts skipped elements; ``step`` adds to it.
        absmax: float32[k] for tensor-wise formats: the largest |m'| of the whole tensor, from
            :meth:`Backend.absmax`.
    """

    lr: torch.Tensor
    keep: torch.Tensor
    grad_scale: torch.Tensor
    step: torch.Tensor
    skipped: torch.Tensor
    absmax: torch.Tensor | None = None

    def part(self, at: slice | torch.Tensor) -> Scalars:
        """Return the numbers of some slots, with the same ``skipped``; for all slots, this object itself.

        Args:
            at: a run of places, or int64 places on the slots' device.
        """
        count = self.lr.numel()
        if isinstance(at, slice) and at.indices(count) == (0, count, 1):
            return self
        absmax = None if self.absmax is None else self.absmax[at]
        return Scalars(self.lr[at], self.keep[at], self.grad_scale[at], self.step[at], self.skipped, absmax)


#: Result of :meth:`Backend.prepare`: a type of the backend's own.
Prepared = Any


class Backend(Protocol):
    """A backend is a module with these names."""

    @property
    def name(self) -> str:
        """As ``LIONBITS_BACKEND`` spells it; the module is ``lionbits_<name>``."""

    def supports(self, plan: Plan, device: torch.device) -> str:
        """Empty, or the reason why this plan cannot be served on this device."""

    def prepare(self, plan: Plan, slots: Sequence[Slot], grads: Sequence[torch.Tensor]) -> Prepared:
        """Do once what depends on addresses, shapes, strides and settings (a table, views, cuts).

        It writes to no tensor of the slots. It may look at everything about the gradients but their values, and keeps
        none of them. A simple backend returns ``(plan, slots)``. The caller prepares again when a tensor of a slot has
        moved, or gradients have another dtype, shape, strides or device.

        Args:
            plan: of all slots.
            slots: k of them, on one device.
            grads: one for each slot, of its parameter's shape: like those to come.
        """

    def aligned(
        self, prepared: Prepared, grads: Sequence[torch.Tensor], hyper: Hyper, scalars: Scalars
    ) -> torch.Tensor:
        """int64[k]: elements whose c and g share a non-zero sign and that are not skipped. Writes nothing."""

    def absmax(self, prepared: Prepared, grads: Sequence[torch.Tensor], hyper: Hyper, scalars: Scalars) -> torch.Tensor:
        """float32[k]: the largest |m'| that ``step`` would encode. Writes nothing."""

    def step(self, prepared: Prepared, grads: Sequence[torch.Tensor], hyper: Hyper, scalars: Scalars) -> None:
        """Update parameters and state in place and add to ``scalars.skipped``. Gradients are read only.

        A tensor-wise ``exp_avg_scale`` is read and left alone, as other rectangles of the tensor may still
        have to read it; the caller stores the new one afterwards.
        """

    def encode(self, format: Format, momentum: torch.Tensor) -> dict[str, torch.Tensor]:
        """State tensors of ``format`` for a float32 momentum, rounded to nearest."""

    def decode(self, format: Format, state: Mapping[str, Any], shape: Sequence[int]) -> torch.Tensor:
        """float32 momentum of ``shape`` from state tensors of ``format``."""
