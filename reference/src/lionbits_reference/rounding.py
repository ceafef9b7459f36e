"""Rounding noise, and how p' is stored: what makes narrow numbers follow small steps on average.

Nearest rounding makes Lion's momentum stick: with beta2 = 0.99 a step changes m by less than half a code, so it
never moves. Noise is a 16-bit number, evenly distributed over 0..65535, that is added below the last kept bit before
truncation, so that the mean is right. It is a function of seed, parameter, element and step alone: no generator
is read or advanced, and a shard, a page or another backend draws what the whole would have drawn. All integers are
unsigned 32-bit, modulo 2^32; i = row * even(columns) + column in the WHOLE parameter::

    salt = fmix32(fmix32(fmix32(fmix32(seed_lo) ^ seed_hi) ^ parameter) ^ purpose)
    h    = fmix32(lo32(i >> 1) ^ fmix32(hi32(i >> 1) ^ salt))
    noise = h & 0xFFFF if i is even else h >> 16

    "dithered"     noise = (noise + step * 40503) mod 2^16          a golden-ratio sequence per element
    "stochastic"   salt is first replaced by fmix32(salt ^ (step * 0x9E3779B9 mod 2^32)): independent draws
    "nearest"      noise = 0x8000                                  (of momentum; parameters round to nearest even)

``even`` rounds up to even, so that no pair which shares a hash is in two rows. 40503 / 2^16 and
0x9E3779B9 / 2^32 are the golden ratio's fraction, whose multiples fill an interval as evenly as a sequence can.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

STATE, PARAMETER = 0, 1  # purposes of a salt

#: The noise of nearest rounding: half of what is dropped.
NEAREST = 0x8000

_NAN = 0x7FC00000  # the bits of a float32

_MASK = 0xFFFFFFFF
_GOLDEN_16, _GOLDEN_32 = 40503, 0x9E3779B9

Words = TypeVar("Words", int, Tensor)


def fmix32(h: Words) -> Words:
    """MurmurHash3's 32-bit finalizer, of an int in 0..2^32-1 or of each element of an int32 tensor, bit for bit."""
    h = h ^ ((h >> 16) & 0xFFFF)
    h = _times(h, 0x85EBCA6B)
    h = h ^ ((h >> 13) & 0x7FFFF)
    h = _times(h, 0xC2B2AE35)
    return h ^ ((h >> 16) & 0xFFFF)


def word(x: Any) -> Any:
    """The low 32 bits of an int, or of each element of an int64 tensor, as int32 has them: -2^31..2^31-1."""
    low = ((x + (1 << 31)) & _MASK) - (1 << 31)
    return low.to(torch.int32) if isinstance(low, Tensor) else low


def _times(h: Words, factor: int) -> Words:
    """Return ``h * factor`` modulo 2^32; products of int32 tensors wrap to that already."""
    return h * int(word(factor)) if isinstance(h, Tensor) else (h * factor) & _MASK


def salt(seed: int, parameter: int, purpose: int) -> int:
    """Return the salt of one parameter and purpose: it separates their noise from all other noise."""
    mixed = fmix32(fmix32(seed & _MASK) ^ (seed >> 32))
    return fmix32(fmix32(mixed ^ (parameter & _MASK)) ^ purpose)


def noise(rounding: str, salt: int, step: Tensor, start: int, pitch: int, shape: tuple[int, int]) -> Tensor | int:
    """Noise of a rectangle of a parameter: int32 of ``shape`` (rows, columns), or one int for ``"nearest"``.

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
    words, phase = keys(rounding, torch.full((), word(salt), dtype=torch.int32, device=step.device), step)
    rows, columns = shape
    half, odd = pairs(columns, step.device)
    row = torch.arange(rows, device=step.device)[:, None] * (pitch // 2) + start // 2
    last = start // 2 + max(rows - 1, 0) * (pitch // 2) + max(columns - 1, 0) // 2
    if start // 2 >> 32 == last >> 32:
        return noise_of_pairs(word(row) + half, spread(start // 2 >> 32, words), phase, odd)
    pair = row + half
    return noise_of_pairs(word(pair), spread((pair >> 32).to(torch.int32), words), phase, odd)


def pairs(columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return, for each column, its pair's number and the bit offset of its noise in the pair's hash: int32[columns]."""
    column = torch.arange(columns, dtype=torch.int32, device=device)
    return column >> 1, (column & 1) << 4


def keys(rounding: str, salt: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Combine int32 salts with the step count: (words, phase), both int32, of the steps' shape."""
    if rounding == "stochastic":
        return fmix32(salt ^ word(step * _GOLDEN_32)), torch.zeros_like(salt)
    return salt, ((step * _GOLDEN_16) & 0xFFFF).to(torch.int32)


def spread(high: int | Tensor, words: Tensor) -> Tensor:
    """Hash what many pairs share: the upper halves of their numbers, and the words of a parameter."""
    return fmix32(words ^ high)


def noise_of_pairs(low: Tensor, spread: Tensor, phase: Tensor, odd: Tensor) -> Tensor:
    """int32 noise, 0..65535, of pairs whose numbers have the lower halves ``low``."""
    return ((fmix32(low ^ spread) >> odd) + phase) & 0xFFFF


def load_param(stored: Tensor, residual: Tensor | None) -> Tensor:
    """Return p as float32; with ``residual`` (int16 or int8) the master value of a compensated bfloat16 parameter."""
    p = stored.to(torch.float32)
    if residual is None:
        return p
    return (p.view(torch.int32) + residual_bits(residual)).view(torch.float32)


def residual_bits(residual: Tensor) -> Tensor:
    """Return int32: what a residual (int16 or int8) adds to the bits of the float32 that bfloat16 kept."""
    return residual.to(torch.int32) << _residual_shift(residual.dtype)


def round_unbiased(p: Tensor, noise: Tensor | int) -> Tensor:
    """float32 to bfloat16 as ``(bits + noise) >> 16``; NaN stays NaN."""
    return _upper_half(torch.where(p.isnan(), _NAN, p.view(torch.int32) + noise))


def split_master(p: Tensor, residual_dtype: torch.dtype, noise: Tensor | int) -> tuple[Tensor, Tensor]:
    """Split float32 into the nearest bfloat16 (ties away from zero) and the residual, an int16 or int8.

    int16 keeps all 32 bits. int8 keeps 24: the low eight are first rounded away with the noise's upper half.
    """
    bits = p.view(torch.int32)
    if residual_dtype == torch.int8:
        bits = (bits + (noise >> 8)) & ~0xFF
    bits = torch.where(p.isnan(), _NAN, bits)
    kept = _upper_half(bits + 0x8000)
    residual = (bits - kept.to(torch.float32).view(torch.int32)) >> _residual_shift(residual_dtype)
    return kept, residual.to(residual_dtype)


def _residual_shift(dtype: torch.dtype) -> int:
    return 8 if dtype == torch.int8 else 0


def _upper_half(bits: Tensor) -> Tensor:
    """Return the upper 16 bits of each float32 as a bfloat16. The lower 16 are 0, so nothing is rounded."""
    return (bits & ~0xFFFF).view(torch.float32).to(torch.bfloat16)
