"""State of whole parameters, put together from parts and cut into parts, where momentum is read, set or converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from lionbits_reference import formats
from lionbits_reference.spec import Format, TensorSpec

from .carried import CODES, SCALE, as_dtensors, from_carried, to_carried
from .dtensors import placed_like
from .local import distributed, lead, local_tensor, run_of

State = dict[str, Any]

#: ``decode`` of a backend.
Decode = Callable[[Format, Mapping[str, Any], Sequence[int]], Tensor]


def decode(decode: Decode, format: Format, param: Tensor, state: Mapping[str, Any]) -> Tensor:
    """Return the momentum of the part of a parameter on this rank, float32 of its shape.

    A run of one row is decoded from the beginning of the block that its first element lies in.
    """
    shape, run = local_tensor(param).shape, run_of(param)
    if run is None or not format.quantised or run.first == run.last:
        return decode(format, state, shape)
    before, scale, codes = 0, state[SCALE], state[CODES].reshape(1, -1)
    if not format.tensor_wise:
        before = run.first % format.block_size
        scale = scale[:, run.first // format.block_size : format.blocks(run.last)]
    if format.bits < 8:
        own = lead(format, run)
        codes = formats.unpack(codes, format.bits, own + run.last - run.first)[:, own:]
    codes = formats.pack(pad(codes, (before, 0)), format.bits)
    count = before + run.last - run.first
    held = {CODES: codes.reshape(count) if format.bits == 8 else codes, SCALE: scale}
    return decode(format, held, (count,))[before:].view(shape)


def gather(format: Format, param: Tensor, specs: Mapping[str, TensorSpec], state: Mapping[str, Any]) -> State:
    """Return the state of the whole parameter, as kernels read it. A collective call.

    Args:
        format: of the momentum.
        param: a DTensor.
        specs: of whole tensors.
        state: of the part on this rank.
    """
    placed = as_dtensors(format, param, specs, to_carried(format, param, state))
    carried = {key: whole(placed[key]) for key in specs}
    return from_carried(format, _undivided(param), specs, carried)


def cut(format: Format, param: Tensor, specs: Mapping[str, TensorSpec], state: Mapping[str, Any]) -> State:
    """Return the state of the part on this rank, as kernels read it, from that of the whole parameter."""
    return from_carried(format, param, specs, carried_whole(format, param, state))


def carried_whole(format: Format, param: Tensor, state: Mapping[str, Any]) -> State:
    """Return the state of the whole parameter, of which a DTensor has a part, in the form of a checkpoint."""
    return to_carried(format, _undivided(param), state)


def whole(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Return all of a tensor. A collective call if it is a DTensor, or the part of one on this rank.

    Args:
        tensor: a tensor.
        like: a parameter of whose shape and placement ``tensor`` is the local part.
    """
    placed = tensor if like is None else placed_like(like, tensor, like.shape)
    return cast(Tensor, cast(Any, placed).full_tensor()) if distributed(placed) else placed


def _undivided(param: Tensor) -> Tensor:
    """Return a tensor of the parameter's shape that is no DTensor and holds nothing."""
    return torch.empty(tuple(param.shape), device="meta")
