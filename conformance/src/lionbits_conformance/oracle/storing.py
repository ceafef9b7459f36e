"""Storage of p': rounded once to the parameter's type, or as a bfloat16 and its residual.

The bits of a binary32 number are taken as sign and magnitude, two integers: one unit more of magnitude is the next
number away from zero, so adding to it and dropping its low half rounds by magnitude. Signs never change.
"""

from __future__ import annotations

from typing import NamedTuple

from .dither import PARAMETER, noise_at, position, salt_of
from .floats import BFLOAT16, BINARY32, NAN, Number, is_nan
from .records import TYPES, Settings

_SIGN = 1 << 31


class Stored(NamedTuple):
    """A stored parameter element."""

    bits: int  # pattern of the parameter's own type
    residual: int  # of a compensated one, signed; else 0


class Store:
    """Storage of one parameter at one step: the rounding of its type and settings, and its noise.

    Attributes:
        mode: ``param_rounding``, and "nearest" for float32, which loses nothing.
        unit: how many units of the last place of binary32 one unit of the residual is: 1, or 256 with
            ``master_bits=24``.
    """

    def __init__(self, dtype: str, settings: Settings, parameter: int, step: int, columns: int) -> None:
        self.type = TYPES[dtype]
        self.mode = settings.param_rounding if dtype == "bfloat16" else "nearest"
        self.unit = 256 if settings.master_bits == 24 else 1
        self.step, self.columns = step, columns
        self.salt = salt_of(settings.seed, parameter, PARAMETER)

    @property
    def compensated(self) -> bool:
        """True if the residual of bfloat16 is kept."""
        return self.mode == "compensated"

    def load(self, bits: int, residual: int) -> Number:
        """Return p as binary32; a compensated one has the sum of the bits of the bfloat16 and of the residual."""
        if not self.compensated:
            return self.type.from_bits(bits)
        return BINARY32.from_bits((bits * 2**16 + residual * self.unit) % 2**32)

    def noise_of_pairs(self, at: int) -> int:
        """Return the noise of element ``at`` in row-major order; for compensated parameters it is dithered."""
        mode = "dithered" if self.compensated else self.mode
        return noise_at(mode, self.salt, self.step, position(*divmod(at, self.columns), self.columns))

    def store(self, p: Number, at: int) -> Stored:
        """Return the stored form of p' for element ``at``; NaN stays NaN, with residual 0."""
        if self.mode == "nearest" or is_nan(p):
            return Stored(self.type.to_bits(self.type.round(p)), 0)
        if self.compensated:
            return split(p, self.unit, self.noise_of_pairs(at) if self.unit > 1 else 0)
        return Stored(unbiased(p, self.noise_of_pairs(at)), 0)


def unbiased(p: Number, noise: int) -> int:
    """Bits of the bfloat16 with magnitude floor((magnitude of p + noise) / 2^16), noise in 0..65535."""
    if is_nan(p):
        return BFLOAT16.to_bits(NAN)
    sign, magnitude = divmod(BINARY32.to_bits(p), _SIGN)
    return (sign << 15) + (magnitude + noise) // 2**16


def split(p: Number, unit: int, noise: int) -> Stored:
    """Return the nearest bfloat16, ties away from zero, and the residual = magnitude - 2^16 * its magnitude, in units.

    With units of 256 the magnitude is first rounded to one: floor((magnitude + noise's upper byte) / 256) * 256.
    """
    if is_nan(p):
        return Stored(BFLOAT16.to_bits(NAN), 0)
    sign, magnitude = divmod(BINARY32.to_bits(p), _SIGN)
    units = (magnitude + noise // 256) // 256 if unit == 256 else magnitude
    kept = (units * unit + 2**15) // 2**16
    return Stored((sign << 15) + kept, units - kept * 2**16 // unit)
