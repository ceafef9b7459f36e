"""Parts as backends take them: rectangles that know where they lie, step after step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from torch.nn.functional import pad

from lionbits import torch_private
from lionbits_reference.spec import Plan, Slot, matrix_shape

from .place import box, cuts_rows, distributed, here, placement

State = dict[str, Any]


def slot(plan: Plan, param: Tensor, grad: Tensor, state: State, index: int) -> Slot | Widened:
    """A parameter, or what of it is here, as backends take it."""
    if not distributed(param):
        return Slot(param, grad, state, index)
    found = Slot(here(param), here(grad), state, index)
    if found.param.numel() and (cuts_rows(param) or plan.draws_for_param):
        columns = matrix_shape(param.shape)[1]
        pitch = columns + columns % 2
        start = _start(param, pitch)
        if start % 2:
            return Widened(plan, found, start, pitch)
        found.start, found.pitch = start, pitch
    return found


class Widened:
    """A part that begins between the two elements of a pair, where backends cannot begin.

    They see it with one more element before each row, a zero, which comes to nothing. Only parameters that are rounded
    by lanes need it, and of these only vectors, or matrices cut into columns, of which ranks have odd numbers.

    Args:
        plan: of the parameter, whose momentum is in float32.
        narrow: the part as it is.
        start, pitch: as of a slot.

    Attributes:
        slot: what backends see.
    """

    def __init__(self, plan: Plan, narrow: Slot, start: int, pitch: int) -> None:
        self._param, self._state, self._keys = narrow.param, narrow.state, list(plan.state_spec(()))
        state = {key: _widened(narrow.state[key]) for key in self._keys}
        self.slot = Slot(_widened(narrow.param), _widened(narrow.grad), state, narrow.index, start - 1, pitch)

    def bring(self) -> None:
        """Take over the part, and the gradient that the slot was given."""
        self.slot.grad = _widened(self.slot.grad)
        for wide, narrow in self._pairs():
            _inside(wide, narrow).copy_(narrow)

    def take_back(self) -> None:
        """Bring the part up to date."""
        for wide, narrow in self._pairs():
            narrow.copy_(_inside(wide, narrow))

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        states = [(self.slot.state[key], self._state[key]) for key in self._keys]
        return [(self.slot.param, self._param), *states]


class Parts:
    """What of parameters and their gradients is here, step after step.

    Args:
        params: some of them distributed, with gradients.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._places = [(j, placement(param)) for j, param in enumerate(params) if distributed(param)]

    def of(self, params: list[Tensor], grads: list[Any]) -> bool:
        """Put local tensors in place of distributed ones, if all are placed as they were."""
        for j, placed in self._places:
            if placement(grads[j]) != placed:  # a parameter's own never change
                return False
            params[j], grads[j] = torch_private.local(params[j]), torch_private.local(grads[j])
        return True


def _start(param: Tensor, pitch: int) -> int:
    """Counting position of the first element that is here."""
    first = [cut.start for cut in box(param, param.shape)]
    row = first.pop(0) if param.dim() > 1 else 0
    column = 0
    for at, size in zip(first, param.shape[-len(first) :], strict=True):
        column = column * size + at
    return cast(int, row * pitch + column)


def _widened(tensor: Tensor) -> Tensor:
    """A copy with a zero before each row: (rows, 1 + columns)."""
    rows, columns = matrix_shape(tensor.shape)
    return pad(tensor.detach().reshape(rows, columns), (1, 0))


def _inside(wide: Tensor, narrow: Tensor) -> Tensor:
    return wide[:, 1:].view(narrow.shape)
