r"""Momentum to codes and back: block-scaled minifloats, by shifts and adds, without a table or a search.

For a block with ``absmax`` = max \|m'\| and a format with largest value ``top`` and w = 23 - Y::

    absmax <= 2^-100:  scale = 0, all codes 0
    a = min(absmax, 2^127)         so that top * scale stays finite; larger magnitudes are held at a
    scale = a / top                r = top / a                y = |m'| * r
    t = bits(y * 2^-127)           gradual underflow makes this integer piecewise-linear in |m'|
    k = min((t + dither) >> w, largest k)          dither = lane << (w - 16); sign kept unless k = 0
    decode: m = +-value(k) * scale                 value(k) is the float with bits k << w, times 2^127

``t`` is also rint(y * 2^22) for y < 2 and bits(y) - (127 << 23) above: the form used here, as x86 is slow on
subnormal numbers. A code is ``sign << (bits-1) | k``; narrow codes are packed within the row, element 0 in the
lowest bits of a byte. A block whose absmax is not finite (only with ``nonfinite="propagate"``) becomes NaN as a
whole: scale NaN, codes 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .spec import Format

#: Blocks at or below this hold nothing: scale 0. (Above it top / absmax is finite for every format.)
TINY = 2.0**-100

#: The largest magnitude that codes can hold. For some formats float32(FLT_MAX / top) * top overflows; an infinite
#: momentum would be skipped for ever, and would make its whole block NaN.
HUGE = 2.0**127
_ONE_BITS = 127 << 23


def block_absmax(m: Tensor, format: Format) -> Tensor:
    """max |m| of each block: (rows, columns) -> (rows, blocks); NaN wins."""
    return _in_blocks(m, format).abs().amax(dim=-1)


def block_scale(absmax: Tensor, format: Format) -> Tensor:
    """float32 scale for each absmax."""
    scale = torch.where(absmax <= TINY, 0.0, absmax.clamp(max=HUGE) / torch.full_like(absmax, format.top))
    return torch.where(torch.isfinite(absmax), scale, torch.nan)


def encode(m: Tensor, absmax: Tensor, lane: Tensor | int, format: Format) -> Tensor:
    """Packed uint8 codes of float32 ``m`` (rows, columns).

    Args:
        m: momentum.
        absmax: (rows, blocks) as :func:`block_absmax` gives, or one number for a tensor-wise format.
        lane: int32 like ``m``, or one int; 0..65535.
    """
    usable = torch.isfinite(absmax) & (absmax > TINY)
    inverse = torch.where(usable, torch.full_like(absmax, format.top) / absmax.clamp(max=HUGE), 0.0)
    y = _per_element(m.abs(), inverse, format)
    t = torch.where(y < 2, torch.round(y * 2.0**22).to(torch.int32), y.view(torch.int32) - _ONE_BITS)
    k = ((t + (lane << (format.shift - 16))) >> format.shift).clamp_(max=format.largest_code)
    k = torch.where(y.isnan(), 0, k)  # infinity * 0, in a block that is NaN anyway
    sign = ((m < 0) & (k > 0)).to(torch.int32) << (format.bits - 1)
    return _pack((k | sign).to(torch.uint8), format.bits)


def decode(codes: Tensor, scale: Tensor, columns: int, format: Format) -> Tensor:
    """float32 momentum (rows, columns); codes are (rows, bytes), scales (rows, blocks) or (1, 1)."""
    code = _unpack(codes, format.bits, columns).to(torch.int32)
    k = code & format.largest_code
    # As the bits of 1.f * 2^e these are right for e > 0; for e = 0 they say 1 + f/2^Y where f * 2^(1-Y) is
    # meant.
    normal = ((k << format.shift) + _ONE_BITS).view(torch.float32)
    value = torch.where(k < (1 << format.mantissa_bits), (normal - 1.0) * 2.0, normal)
    negative = (code >> (format.bits - 1)).to(torch.bool)
    return _per_element(torch.where(negative, -value, value), scale, format)


def _per_element(x: Tensor, factor: Tensor, format: Format) -> Tensor:
    """x times its block's factor, one rounding each."""
    if factor.numel() == 1:
        return x * factor.reshape(())
    columns = x.shape[1]
    blocks = _in_blocks(x, format) * factor[..., None]
    return blocks.flatten(1)[:, :columns].contiguous()


def _in_blocks(x: Tensor, format: Format) -> Tensor:
    """(rows, columns) as (rows, blocks, block); a short last block is filled with zeros."""
    rows, columns = x.shape
    if format.tensor_wise:
        return x.reshape(1, 1, -1)
    short = -columns % format.block_size
    return (pad(x, (0, short)) if short else x).reshape(rows, -1, format.block_size)


def _pack(codes: Tensor, bits: int) -> Tensor:
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


def _unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse of :func:`_pack`: uint8 codes (rows, columns)."""
    per = 8 // bits
    if per == 1:
        return packed
    slots = [(packed >> (j * bits)) & ((1 << bits) - 1) for j in range(per)]
    return torch.stack(slots, dim=-1).flatten(1)[:, :columns]
