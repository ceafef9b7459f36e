"""LocalTensors as backends take them: rectangles that know where they lie, step after step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from lionbits import torch_private
from lionbits_reference.spec import Plan, Slot, matrix_shape

from .local import box, cut_dims, cuts_rows, distributed, local_tensor, placement

State = dict[str, Any]


def slot(plan: Plan, param: Tensor, state: State, index: int) -> Slot | PaddedShard:
    """A parameter, or the part of it on this rank, as backends take it."""
    if not distributed(param):
        return Slot(param, state, index)
    local = local_tensor(param)
    if not local.numel() or not (cuts_rows(param) or plan.draws_for_param):
        return Slot(local, state, index)
    found = Slot(local, state, index, *_position(param))
    return PaddedShard(plan, found) if found.start % 2 else found


class PaddedShard:
    """A shard that begins between the two elements of a pair that shares a hash, where backends cannot begin.

    They see it with one more element before each row, a zero, which comes to nothing. Only parameters that are rounded
    with dither need it, and of these only those that are one row, or matrices cut into columns, of which ranks have odd
    numbers.

    Args:
        plan: of the parameter, whose momentum is in float32.
        shard: as it is.

    Attributes:
        slot: what backends see.
    """

    def __init__(self, plan: Plan, shard: Slot) -> None:
        self._param, self._state, self._keys = shard.param, shard.state, list(plan.state_spec(()))
        self._matrix = shard.matrix
        state = {key: self.padded(shard.state[key]) for key in self._keys}
        self.slot = Slot(self.padded(shard.param), state, shard.index, shard.start - 1, shard.pitch)

    def padded(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor of the shard's shape with a zero before each row: (rows, 1 + columns)."""
        return pad(tensor.detach().reshape(self._matrix), (1, 0))

    def fill(self) -> None:
        """Copy the shard to what backends see."""
        for wide, narrow in self._pairs():
            _inside(wide, narrow).copy_(narrow)

    def write_back(self) -> None:
        """Copy what backends left to the shard."""
        for wide, narrow in self._pairs():
            narrow.copy_(_inside(wide, narrow))

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        states = [(self.slot.state[key], self._state[key]) for key in self._keys]
        return [(self.slot.param, self._param), *states]


class LocalTensors:
    """Local tensors of parameters and their gradients, step after step.

    Args:
        params: some of them distributed, with gradients.

    Attributes:
        moving: places of the gradients that are placed otherwise than their parameters.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._places = [(j, placement(param.grad)) for j, param in enumerate(params) if distributed(param)]
        self.moving = [j for j, placed in self._places if placed != placement(params[j])]

    def of(self, params: list[Tensor], grads: list[Any]) -> bool:
        """Put local tensors in place of distributed ones, if all gradients are placed as they were."""
        for j, placed in self._places:
            if placement(grads[j]) != placed:  # a parameter's own placements never change
                return False
            params[j], grads[j] = torch_private.local(params[j]), torch_private.local(grads[j])
        return True


def _position(param: Tensor) -> tuple[int, int | None]:
    """Counting positions in the whole parameter: of the first element that is here, and from row to row."""
    first = [cut.start for cut in box(param, param.shape)]
    rows, columns = matrix_shape(param.shape)
    if rows > 1:
        pitch = columns + columns % 2
        return first[0] * pitch + _flat(first[1:], param.shape[1:]), pitch
    is_run = all(dim in (None, 0) for dim in cut_dims(param))  # of the one row; else a piece of each of several runs
    return _flat(first, param.shape), None if is_run else math.prod(param.shape[1:])


def _flat(place: Sequence[int], shape: Sequence[int]) -> int:
    """The number of an element in row-major order."""
    at = 0
    for index, size in zip(place, shape, strict=True):
        at = at * size + index
    return at


def _inside(wide: Tensor, narrow: Tensor) -> Tensor:
    return wide[:, 1:].view(narrow.shape)
