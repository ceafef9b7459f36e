"""LocalTensors as backends take them: rectangles that know where they lie, step after step."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from torch.nn.functional import pad

from lionbits import torch_private
from lionbits_reference.spec import Plan, Slot, matrix_shape

from .local import box, cut_dims, distributed, lead, local_tensor, placement, run_of

State = dict[str, Any]


def slot(plan: Plan, param: Tensor, state: State, index: int) -> Slot | PaddedShard:
    """A parameter, or the part of it on this rank, as backends take it."""
    local = local_tensor(param)
    if not distributed(param) or not local.numel() or not (plan.format.quantised or plan.draws_for_param):
        return Slot(local, state, index)
    run = run_of(param)
    found = Slot(local, state, index, *_position(param))
    before = found.start % 2 if run is None else lead(plan.format, run)
    contiguous = run is None or local.is_contiguous()
    return found if contiguous and not before else PaddedShard(plan, found, before)


class PaddedShard:
    """A shard that begins where backends cannot begin, or in strides in which its blocks cannot be told apart.

    Backends begin at even positions, as two elements share a hash, and where a byte of codes begins. They see such a
    shard as a contiguous copy with more elements before each row, zeros, which come to nothing. Only few need it:
    shards of one row, of which ranks have odd numbers, and matrices cut into columns whose parameter is rounded with
    dither.

    Args:
        plan: of the parameter.
        shard: as it is.
        before: zeros before each row.

    Attributes:
        slot: what backends see.
    """

    def __init__(self, plan: Plan, shard: Slot, before: int) -> None:
        self._shard, self._before = shard, before
        along = plan.state_spec(()).keys() - {"exp_avg_scale"}
        packed = {"exp_avg_codes"} if plan.format.bits < 8 else set()  # which begin with the byte of the first one
        self._keys = sorted(along - packed)
        state = ChainMap(
            {key: self.padded(shard.state[key]) for key in self._keys}, cast(dict[str, Tensor], shard.state)
        )
        self.slot: Slot = Slot(self.padded(shard.param), state, shard.index, shard.start - before, shard.pitch)

    def padded(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor of the shard's shape with zeros before each row: (rows, zeros + columns)."""
        return pad(tensor.detach().reshape(self._shard.matrix), (self._before, 0))

    def fill(self) -> None:
        """Copy the shard to what backends see."""
        for wide, narrow in self._pairs():
            self._inside(wide, narrow).copy_(narrow)

    def write_back(self) -> None:
        """Copy what backends left to the shard."""
        for wide, narrow in self._pairs():
            narrow.copy_(self._inside(wide, narrow))

    def _inside(self, wide: Tensor, narrow: Tensor) -> Tensor:
        return wide[:, self._before :].view(narrow.shape)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        states = [(self.slot.state[key], self._shard.state[key]) for key in self._keys]
        return [(self.slot.param, self._shard.param), *states]


class LocalTensors:
    """Local tensors of parameters and their gradients, step after step.

    Args:
        params: some of them distributed, with gradients.

    Attributes:
        moving: places of the gradients that are placed otherwise than their parameters.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._places = [(j, placement(param.grad)) for j, param in enumerate(params) if distributed(param)]
        self.moving: list[int] = [j for j, placed in self._places if placed != placement(params[j])]

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
