r"""Momentum to codes and back: block-scaled minifloats, by shifts and adds, without a table or a search.

For a block with ``absmax`` = max \|m'\| and a format with largest value ``top`` and w = 23 - Y::

    absmax <= 2^-100:  scale = 0, all codes 0
    a = min(absmax, 2^127)         so that top * scale stays finite; larger magnitudes are held at a
    scale = a / top                r = top / a                y = |m'| * r
    t = bits(y * 2^-127)           gradual underflow makes this integer piecewise-linear in |m'|
    k = min((t + dither) >> w, largest k)          dither = noise << (w - 16); sign kept unless k = 0
    decode: m = +-value(k) * scale                 value(k) is the float with bits k << w, times 2^127

``t`` is also rint(y * 2^22) for y < 2 and bits(y) - (127 << 23) above, and the larger of the two everywhere, if y is
held at 2 in the first: the form used here, as x86 is slow on subnormal numbers.

A code is ``sign << (bits-1) | k``; narrow codes are packed within the row, element 0 in the lowest bits of a byte. A
block whose absmax is not finite (only with ``nonfinite="propagate"``) becomes NaN as a whole: scale NaN, codes 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .spec import Format

#: Blocks at or below this hold nothing: scale 0. (Above it top / absmax is finite for every format.)
TINY = 2.0**-100

#: The largest magnitude that codes can hold. For some formats float32(FLT_MAX / top) * top overflows; an infinite
#: momentum would always be skipped, and would make its whole block NaN.
HUGE = 2.0**127

#: The bits of 1.0 and of 2.0, and the sign.
_ONE, _TWO, _SIGN = 127 << 23, 128 << 23, -(1 << 31)


def value(code: Tensor, format: Format) -> Tensor:
    """float32 values of int32 codes, before scaling."""
    normal = ((code & format.largest_code) << format.shift) + _ONE
    # As the bits of 1.f * 2^e these are right for e > 0; for e = 0 they say 1 + f/2^Y where f * 2^(1-Y) is meant. The
    # one that is meant is the smaller of the two, and the bits of positive floats sort as the floats do.
    subnormal = (normal.view(torch.float32) * 2.0 - 2.0).view(torch.int32)
    sign = (code << (32 - format.bits)) & _SIGN
    return (torch.minimum(normal, subnormal) | sign).view(torch.float32)


def code(m: Tensor, inverse: Tensor, limit: Tensor, noise: Tensor | int, format: Format) -> Tensor:
    """Return int32 codes of float32 ``m``; ``inverse`` and ``limit`` are per element, from :func:`block_inverse`."""
    y = (m * inverse).abs()  # in this order even a NaN has its sign bit cleared
    held = y.view(torch.int32).clamp(max=_TWO).view(torch.float32)
    t = torch.maximum(torch.round(held * 2.0**22).to(torch.int32), y.view(torch.int32) - _ONE)
    k = torch.minimum((t + (noise << (format.shift - 16))) >> format.shift, limit)
    return k | (((m.view(torch.int32) & -k) >> (32 - format.bits)) & (format.largest_code + 1))


def block_absmax(m: Tensor, format: Format) -> Tensor:
    """max |m| of each block: (rows, columns) -> (rows, blocks); NaN wins."""
    return _in_blocks(m, format).abs().amax(dim=-1)


def block_scale(absmax: Tensor, format: Format) -> Tensor:
    """float32 scale for each absmax."""
    scale = torch.where(absmax <= TINY, 0.0, absmax.clamp(max=HUGE) / _top(absmax, format))
    return torch.where(torch.isfinite(absmax), scale, torch.nan)


def block_inverse(absmax: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """Return float32 r = top / absmax and the largest code, int32, for each absmax; both are 0 where scale is 0."""
    usable = torch.isfinite(absmax) & (absmax > TINY)
    inverse = torch.where(usable, _top(absmax, format) / absmax.clamp(max=HUGE), 0.0)
    return inverse, usable.to(torch.int32) * format.largest_code


def encode(m: Tensor, absmax: Tensor, noise: Tensor | int, format: Format) -> Tensor:
    """Packed uint8 codes of float32 ``m`` (rows, columns).

    Args:
        m: momentum.
        absmax: (rows, blocks) as :func:`block_absmax` gives, or one number for a tensor-wise format.
        noise: int32 like ``m``, or one int; 0..65535.
    """
    inverse, limit = (_per_element(x, m.shape[1], format) for x in block_inverse(absmax, format))
    return pack(code(m, inverse, limit, noise, format).to(torch.uint8), format.bits)


def decode(codes: Tensor, scale: Tensor, columns: int, format: Format) -> Tensor:
    """float32 momentum (rows, columns); codes are (rows, bytes), scales (rows, blocks) or (1, 1)."""
    unscaled = value(unpack(codes, format.bits, columns).to(torch.int32), format)
    return unscaled * _per_element(scale, columns, format)


def _top(like: Tensor, format: Format) -> Tensor:
    """Return ``top`` as a tensor: torch may multiply by the inverse instead of dividing by a Python number."""
    return torch.ones_like(like) * format.top


def _per_element(x: Tensor, columns: int, format: Format) -> Tensor:
    """Repeat a value of each block, (rows, blocks), for its elements: (rows, columns). One number stays one, 0-d."""
    if x.numel() == 1:
        return x.reshape(())
    return x[..., None].expand(-1, -1, format.block_size).flatten(1)[:, :columns]


def _in_blocks(x: Tensor, format: Format) -> Tensor:
    """(rows, columns) as (rows, blocks, block); a short last block is filled with zeros."""
    rows, columns = x.shape
    if format.tensor_wise:
        return x.reshape(1, 1, -1)
    short = -columns % format.block_size
    return (pad(x, (0, short)) if short else x).reshape(rows, -1, format.block_size)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes (rows, columns) to bytes (rows, ceil(columns * bits / 8))."""
    per = 8 // bits
    if per == 1:
        return codes
    rows, columns = codes.shape
    slots = pad(codes, (0, -columns % per)).reshape(rows, -1, per)
    packed = slots[..., 0]
    for j in range(1, per):
        packed = packed | (slots[..., j] << (j * bits))
    return packed


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse of :func:`pack`: uint8 codes (rows, columns)."""
    per = 8 // bits
    if per == 1:
        return packed
    slots = [(packed >> (j * bits)) & ((1 << bits) - 1) for j in range(per)]
    return torch.stack(slots, dim=-1).flatten(1)[:, :columns]
