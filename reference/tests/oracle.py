"""What the tests expect, in Python ints, fractions and numpy float32, whose arrays round once per operation.

Nothing here imports the code under test: where the two differ there are two readings of the design to weigh.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

#: (X, Y) of every eXmY with a sign bit and 2, 4 or 8 bits in all, X <= 4.
EVERY_FORMAT = [(x, bits - 1 - x) for bits in (8, 4, 2) for x in range(5) if bits - 1 - x >= 0]

NAMES = [f"e{x}m{y}" for x, y in EVERY_FORMAT]

FLT_MAX = float(np.finfo(np.float32).max)


# ---- binary32 ----------------------------------------------------------------------------------------


def bits_of(x: float) -> int:
    """The binary32 bits of a float that is one."""
    return int(struct.unpack("<I", struct.pack("<f", x))[0])


def from_bits(bits: int) -> float:
    """The float with these binary32 bits."""
    return float(struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0])


def round32(x: Fraction) -> float:
    """An exact number rounded to binary32 once, to nearest even, with gradual underflow; by integer arithmetic."""
    if x == 0:
        return 0.0
    magnitude, sign = abs(x), math.copysign(1.0, x)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    rounded = round(magnitude / unit) * unit  # round() of a Fraction is to nearest even
    return sign * (math.inf if rounded >= Fraction(2) ** 128 else float(rounded))


def shift_to_even(n: Ints, places: Ints) -> Ints:
    """n / 2^places rounded to nearest even, of integers n >= 0 and 1 <= places <= 62."""
    floor, residual, half = n >> places, n & ((1 << places) - 1), 1 << (places - 1)
    rounded: Ints = floor + ((residual > half) | ((residual == half) & (floor & 1 == 1)))
    return rounded


# ---- formats -----------------------------------------------------------------------------------------


def magnitude(x: int, y: int, k: int) -> Fraction:
    """The value of magnitude code ``k`` of eXmY, before scaling."""
    e, f = divmod(k, 2**y)
    return Fraction(2 * f, 2**y) if e == 0 else (1 + Fraction(f, 2**y)) * 2**e


def magnitudes(x: int, y: int) -> list[Fraction]:
    """All magnitudes of eXmY in order."""
    return [magnitude(x, y, k) for k in range(2 ** (x + y))]


def exact_t(y_bits: Ints) -> Ints:
    """The integer that is rounded to a code, of non-negative finite float32 given by their bits.

    rint(y * 2^22) below 2, from the significand by integer arithmetic; above, the bits less those of 1.0.
    """
    exponent = y_bits >> 23
    significand = np.where(exponent == 0, y_bits, (y_bits & 0x7FFFFF) | 0x800000)
    small = shift_to_even(significand, np.clip(128 - exponent, 1, 40))  # y = significand * 2^(exponent - 150)
    return np.where(exponent >= 128, y_bits - (127 << 23), small)


def encode_magnitudes(x: int, y: int, t: Ints, noise: Ints | int) -> Ints:
    """k = min((t + dither) >> w, largest k)."""
    w = 23 - y
    k: Ints = np.minimum((t + (np.asarray(noise, dtype=np.int64) << (w - 16))) >> w, 2 ** (x + y) - 1)
    return k


def pack(codes: list[int], bits: int) -> list[int]:
    """One row's codes as bytes, element 0 in the lowest bits."""
    whole = sum(code << (j * bits) for j, code in enumerate(codes))
    return list(whole.to_bytes(-(-len(codes) * bits // 8), "little"))


# ---- rounding noise ----------------------------------------------------------------------------------

M32 = 2**32


def fmix32(h: int) -> int:
    """MurmurHash3's finalizer."""
    h ^= h >> 16
    h = h * 0x85EBCA6B % M32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % M32
    return h ^ (h >> 16)


def one_noise(mode: str, seed: int, parameter: int, purpose: int, step: int, i: int) -> int:
    """The 16-bit noise of element ``i`` (counted over rows of even(cols)) of a parameter, at a step."""
    salt = fmix32(fmix32(fmix32(fmix32(seed % M32) ^ (seed // M32)) ^ parameter) ^ purpose)
    if mode == "nearest":
        return 0x8000
    if mode == "stochastic":
        salt = fmix32(salt ^ (step * 0x9E3779B9 % M32))
    pair = i // 2
    h = fmix32((pair % M32) ^ fmix32((pair // M32) ^ salt))
    drawn = h // 65536 if i % 2 else h % 65536
    return (drawn + step * 40503) % 65536 if mode == "dithered" else drawn


# ---- torch <-> numpy ---------------------------------------------------------------------------------


def tensor(x: npt.NDArray[np.generic]) -> torch.Tensor:
    """A tensor of its own with the array's values."""
    return torch.from_numpy(np.ascontiguousarray(x).copy())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal dtype, shape and bits; every NaN counts as the same NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.dtype.is_floating_point:
        return torch.equal(a, b)
    raw = {4: torch.int32, 2: torch.int16}[a.element_size()]
    a, b = a.contiguous(), b.contiguous()
    return bool(((a.view(raw) == b.view(raw)) | (a.isnan() & b.isnan())).all())


# ---- the rule ----------------------------------------------------------------------------------------


class Lion(NamedTuple):
    """What the rule gives: float32 p' and m', which elements were skipped, and which are aligned."""

    p: Floats
    m: Floats
    skipped: Bools
    aligned: Bools


def lion(
    p: Floats,
    m: Floats,
    g: Floats,
    lr: float,
    wd: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
    caution: str = "none",
    nonfinite: str = "skip",
    rate: float | None = None,
) -> Lion:
    """The update rule on arrays, a rounding per operation; ``rate``: the learning rate after cautious scaling."""
    one = np.float32(1)
    b1, b2 = (np.float32(b) for b in betas)
    a1, a2 = (np.float32(1 - b) for b in betas)
    keep = one - np.float32(lr) * np.float32(wd)
    with np.errstate(all="ignore"):
        c = m * b1 + g * a1
        u = (c > 0).astype(np.float32) - (c < 0).astype(np.float32)
        share = ((c > 0) & (g > 0)) | ((c < 0) & (g < 0))
        oppose = ((c > 0) & (g < 0)) | ((c < 0) & (g > 0))
        if caution == "mask":
            u = np.where(share, u, np.float32(0))
        if caution == "gradient":
            u = np.where(oppose, np.where(g > 0, one, -one), u)
        moved = p * keep - np.float32(lr if rate is None else rate) * u
        advanced = m * b2 + g * a2
    skipped = np.zeros(p.shape, dtype=bool)
    if nonfinite == "skip":
        skipped = ~(np.isfinite(g) & np.isfinite(advanced))
    return Lion(np.where(skipped, p, moved), np.where(skipped, m, advanced), skipped, share & ~skipped)
