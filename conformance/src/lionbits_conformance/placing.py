"""How a tensor lies in memory: inside a larger buffer whose other elements must never change."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

MARGIN = 64  # elements of a buffer before and behind its tensor
_CANARY = {torch.int8: 0x5A, torch.uint8: 0xA5, torch.int16: 0x5A5A}

#: ``offset``: one element from where it would be aligned. ``permuted``: the dimensions in any order, which the seed
#: says. ``strided``: every other element. ``padded``: rows that are longer than what is used of them, ``big[..., :k]``.
#: ``sliced``: the second dimension is longer than what is used of it, ``big[:, 1:k+1]``.
LAYOUTS = ("contiguous", "offset", "transposed", "channels_last", "permuted", "strided", "padded", "sliced")

#: ``expanded``: some dimensions, which the seed says, have stride 0, as the gradient of a sum has.
GRAD_LAYOUTS = (*LAYOUTS, "expanded")


def place(
    buffers: dict[str, Tensor], name: str, value: Tensor, layout: str, device: torch.device, seed: int = 0
) -> Tensor:
    """A view of a canary-filled buffer that has the value's shape, the layout's strides, and the value."""
    order = _order(layout, value.dim(), seed)
    shape = [value.shape[i] for i in order]
    margin = MARGIN + (layout == "offset")
    size = math.prod(_widened(shape, layout))
    buffer = torch.full((size + 2 * MARGIN + 2,), _CANARY.get(value.dtype, 7.0), dtype=value.dtype, device=device)
    buffers[name] = buffer
    base = _narrowed(buffer[margin : margin + size].view(_widened(shape, layout)), shape, layout)
    view = base.permute([order.index(i) for i in range(len(order))]) if order else base
    return view.copy_(value)


def collapsed(value: Tensor, seed: int) -> Tensor:
    """The part of a value that is expanded to its shape: one element of some dimensions, which the seed says."""
    if not value.dim():
        return value
    chosen = 1 + seed % ((1 << value.dim()) - 1)
    return value[tuple(slice(0, 1) if chosen >> i & 1 else slice(None) for i in range(value.dim()))]


def like(tensor: Tensor, fill: float) -> Tensor:
    """Another tensor with the strides of this one, which may be 0, and one number everywhere."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = torch.full((max(span, 0) if tensor.numel() else 0,), fill, dtype=tensor.dtype, device=tensor.device)
    return flat.as_strided(tensor.shape, tensor.stride())


def _order(layout: str, dimensions: int, seed: int) -> list[int]:
    """The dimensions as they lie in memory, the slowest first."""
    order = list(range(dimensions))
    if layout == "transposed":
        return order[::-1]
    if layout == "channels_last" and dimensions in (4, 5):
        return [0, *order[2:], 1]
    if layout == "permuted":
        skipped = seed % math.factorial(dimensions)
        return list(next(itertools.islice(itertools.permutations(order), skipped, None)))
    return order


def _widened(shape: list[int], layout: str) -> list[int]:
    """The shape of the memory that a tensor of this shape is cut from."""
    if layout == "strided" and shape:
        return [*shape[:-1], 2 * shape[-1]]
    if layout == "padded" and shape:
        return [*shape[:-1], shape[-1] + 3]
    if layout == "sliced" and len(shape) > 1:
        return [shape[0], shape[1] + 2, *shape[2:]]
    return shape


def _narrowed(base: Tensor, shape: list[int], layout: str) -> Tensor:
    """What is cut from memory of that shape."""
    if layout == "strided" and shape:
        return base[..., ::2]
    if layout == "padded" and shape:
        return base[..., : shape[-1]]
    if layout == "sliced" and len(shape) > 1:
        return base[:, 1 : shape[1] + 1]
    return base
