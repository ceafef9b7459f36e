"""Rounding lanes, and how p' is stored: what makes narrow numbers follow small steps on average.

Nearest rounding makes Lion's momentum stick: with beta2 = 0.99 a step changes m by less than half a code, so it
never moves. Lanes are 16-bit numbers, spread evenly over 0..65535, that are added below the last kept bit before
truncation, so that the mean is right. They are a function of seed, parameter, element and step alone: no generator
is read or advanced, and a shard, a page or another backend draws what the whole would have drawn. All integers are
unsigned 32-bit, modulo 2^32; i = row * even(columns) + column in the WHOLE parameter::

    salt = fmix32(fmix32(fmix32(fmix32(seed_lo) ^ seed_hi) ^ parameter) ^ purpose)
    h    = fmix32(lo32(i >> 1) ^ fmix32(hi32(i >> 1) ^ salt))
    lane = h & 0xFFFF if i is even else h >> 16

    "dithered"     lane = (lane + step * 40503) mod 2^16          a golden-ratio sequence per element
    "stochastic"   salt is first replaced by fmix32(salt ^ (step * 0x9E3779B9 mod 2^32)): independent draws
    "nearest"      lane = 0x8000                                  (of momentum; parameters round to nearest even)

``even`` rounds up to even, so that the pairs which share a hash never straddle rows. 40503 / 2^16 and
0x9E3779B9 / 2^32 are the golden ratio's fraction, whose multiples fill an interval as evenly as a sequence can.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

STATE, PARAMETER = 0, 1  # purposes of a salt

#: The lane of nearest rounding: half of what is dropped.
NEAREST = 0x8000

_MASK = 0xFFFFFFFF
_GOLDEN_16, _GOLDEN_32 = 40503, 0x9E3779B9

Words = TypeVar("Words", int, Tensor)


def fmix32(h: Words) -> Words:
    """MurmurHash3's 32-bit finalizer, of an int or of each element of an int64 tensor, all in 0..2^32-1."""
    h = h ^ (h >> 16)
    h = (h * 0x85EBCA6B) & _MASK
    h = h ^ (h >> 13)
    h = (h * 0xC2B2AE35) & _MASK
    return h ^ (h >> 16)


def salt(seed: int, parameter: int, purpose: int) -> int:
    """What tells the lanes of one parameter and purpose from all others."""
    mixed = fmix32(fmix32(seed & _MASK) ^ (seed >> 32))
    return fmix32(fmix32(mixed ^ (parameter & _MASK)) ^ purpose)


def lanes(rounding: str, salt: int, step: Tensor, start: int, pitch: int, shape: tuple[int, int]) -> Tensor | int:
    """Lanes of a rectangle of a parameter: int32 of ``shape`` (rows, columns), or one int for ``"nearest"``.

    Args:
        rounding: ``"dithered"``, ``"stochastic"`` or ``"nearest"``.
        salt: from :func:`salt`.
        step: int64, 0-d.
        start: counting position of the rectangle's first element; even.
        pitch: counting positions from one row to the next; even.
        shape: of the rectangle.
    """
    if rounding == "nearest":
        return NEAREST
    words: Any = salt
    phase: Any = 0
    if rounding == "stochastic":
        words = fmix32(salt ^ ((step * _GOLDEN_32) & _MASK))
    else:
        phase = step * _GOLDEN_16
    rows, columns = shape
    pairs = -(-columns // 2)
    first, last = start // 2, start // 2 + max(rows - 1, 0) * (pitch // 2) + max(pairs - 1, 0)
    row = torch.arange(rows, device=step.device) * (pitch // 2) + first
    pair = row[:, None] + torch.arange(pairs, device=step.device)
    high = torch.arange(first >> 32, (last >> 32) + 1, device=step.device)  # a rectangle rarely has two
    inner = fmix32(high ^ words)
    spread = inner if len(high) == 1 else inner[(pair >> 32) - (first >> 32)]
    h = fmix32((pair & _MASK) ^ spread)
    both = torch.stack((h, h >> 16), dim=-1).reshape(rows, 2 * pairs)[:, :columns]
    lane: Tensor = (both + phase) & 0xFFFF
    return lane.to(torch.int32)


def load_param(stored: Tensor, rest: Tensor | None) -> Tensor:
    """p as float32; with ``rest`` (int16 or int8) the master value of a compensated bfloat16 parameter."""
    if rest is None:
        return stored.to(torch.float32)
    return ((_bits16(stored) << 16) + (rest.to(torch.int32) << _rest_shift(rest.dtype))).view(torch.float32)


def round_unbiased(p: Tensor, lane: Tensor | int) -> Tensor:
    """float32 to bfloat16 as ``(bits + lane) >> 16``; NaN stays NaN."""
    bits = p.view(torch.int32)
    return _from_bits16(torch.where(p.isnan(), 0x7FC0, (bits + lane) >> 16))


def split_master(p: Tensor, rest_dtype: torch.dtype, lane: Tensor | int) -> tuple[Tensor, Tensor]:
    """float32 to the bfloat16 nearest to it (ties away from zero) and what that drops, an int16 or int8.

    int16 keeps all 32 bits. int8 keeps 24: the low eight are first rounded away with the lane's upper half.
    """
    bits = p.view(torch.int32)
    if rest_dtype == torch.int8:
        bits = (bits + (lane >> 8)) & ~0xFF
    bits = torch.where(p.isnan(), 0x7FC00000, bits)
    kept = (bits + 0x8000) >> 16
    rest = (bits - (kept << 16)) >> _rest_shift(rest_dtype)
    return _from_bits16(kept), rest.to(rest_dtype)


def _rest_shift(dtype: torch.dtype) -> int:
    return 8 if dtype == torch.int8 else 0


def _bits16(stored: Tensor) -> Tensor:
    return stored.contiguous().view(torch.int16).to(torch.int32)


def _from_bits16(bits: Tensor) -> Tensor:
    return bits.to(torch.int16).view(torch.bfloat16)
