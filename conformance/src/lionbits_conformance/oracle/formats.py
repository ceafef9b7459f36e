"""State formats: block-scaled minifloats ``eXmY``, by their definition in exact numbers.

The magnitude code k of a format means value(k); a block of a row shares one binary32 scale, and a code stands for
+-value(k) * scale. Codes are found by counting *ticks*, the unit in which every format's codes lie 2^w apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from .floats import BINARY32, NAN, ZERO, Number, exact, greater, is_finite, is_nan, magnitude, negative, sign_of
from .records import Array, Settings

#: A block whose largest magnitude is no larger holds nothing.
NOTHING: Number = (0, 1, -100)

#: The largest magnitude that a block can hold: above it top * scale could overflow.
HELD: Number = (0, 1, 127)

#: Defaults by width: (format, block size).
DEFAULTS = {8: ("e3m4", 256), 4: ("e3m0", 128), 2: ("e0m1", 64)}

#: Every format that there is, by name.
NAMES = tuple(f"e{x}m{bits - 1 - x}" for bits in (8, 4, 2) for x in range(5) if bits - 1 - x >= 0)


@dataclass(frozen=True)
class StateFormat:
    """``eXmY``: X = ``exponents``, Y = ``mantissas`` bits; ``block`` elements share a scale, 0: all of a tensor."""

    exponents: int
    mantissas: int
    block: int = 0

    @classmethod
    def named(cls, name: str, block: int = 0) -> StateFormat:
        """The format that is written ``eXmY``."""
        return cls(int(name[1]), int(name[3]), block)

    @property
    def bits(self) -> int:
        """Width of a code: sign, exponent, mantissa."""
        return 1 + self.exponents + self.mantissas

    @property
    def largest(self) -> int:
        """The largest magnitude code."""
        return (1 << (self.bits - 1)) - 1

    @property
    def top(self) -> Number:
        """The largest value."""
        return self.value(self.largest)

    @property
    def spacing(self) -> int:
        """2^w, w = 23 - Y: ticks from one code to the next."""
        return 1 << (23 - self.mantissas)

    def value(self, k: int) -> Number:
        """With e = k >> Y and f = k mod 2^Y: f * 2^(1-Y) where e = 0, else (1 + f/2^Y) * 2^e."""
        e, f = divmod(k, 1 << self.mantissas)
        if e == 0:
            return (0, f, 1 - self.mantissas) if f else ZERO
        return (0, (1 << self.mantissas) + f, e - self.mantissas)

    def blocks(self, columns: int) -> int:
        """Return the number of scales of a row; its last block may be short."""
        return -(-columns // self.block) if self.block else 1


def format_of(settings: Settings, param: Array) -> StateFormat | None:
    """The format of a parameter's momentum; None for binary32, as kept by parameters that are small or narrow."""
    if settings.optim_bits == 32 or len(param.bits) < settings.min_8bit_size or param.matrix[1] < 32:
        return None
    name, block = DEFAULTS[settings.optim_bits]
    if settings.state_format is not None:
        name = settings.state_format
    if settings.block_size is not None:
        block = settings.block_size
    return StateFormat.named(name, block if settings.block_wise else 0)


def ticks(y: Number) -> int:
    """The integer t that is linear in y >= 0 between powers of two, and below 2 altogether: the bits of y * 2^-127.

    rint(y * 2^22) for y < 2, half to even; and 2^23 * (e + y/2^e - 1) for 2^e <= y < 2^(e+1), e >= 1.
    """
    amount = exact(y)
    if amount < 2:
        return round(amount * 2**22)
    e = 1
    while amount >= 2 ** (e + 1):
        e += 1
    t = 2**23 * (e + amount / 2**e - 1)
    if t.denominator != 1:
        raise ValueError(f"{y} is no binary32 number")
    return int(t)


def absmax_of(momenta: Iterable[Number]) -> Number:
    """The largest magnitude; NaN if any is NaN, zero of nothing."""
    largest = ZERO
    for m in momenta:
        if is_nan(m):
            return NAN
        if greater(magnitude(m), largest):
            largest = magnitude(m)
    return largest


def held(absmax: Number) -> Number:
    """A finite absmax, or 2^127 where it is larger."""
    return HELD if greater(absmax, HELD) else absmax


def scale_of(absmax: Number, fmt: StateFormat) -> Number:
    """min(absmax, 2^127) / top; 0 where absmax <= 2^-100; NaN where it is not finite."""
    if not is_finite(absmax):
        return NAN
    return BINARY32.div(held(absmax), fmt.top) if greater(absmax, NOTHING) else ZERO


def inverse_of(absmax: Number, fmt: StateFormat) -> Number | None:
    """Return r = top / min(absmax, 2^127); None if the block has no codes but 0."""
    usable = is_finite(absmax) and greater(absmax, NOTHING)
    return BINARY32.div(fmt.top, held(absmax)) if usable else None


def code_of(m: Number, inverse: Number | None, noise: int, fmt: StateFormat) -> int:
    """sign and k = min(floor((t + dither) / 2^w), largest k), t the ticks of abs(m) * r, dither = noise * 2^(w-16).

    The sign, the code's highest bit, is kept unless k = 0.
    """
    if inverse is None:
        return 0
    dither = Fraction(noise * fmt.spacing, 1 << 16)
    k = min(int((ticks(BINARY32.mul(magnitude(m), inverse)) + dither) // fmt.spacing), fmt.largest)
    return k + (fmt.largest + 1 if k and sign_of(m) < 0 else 0)


def number_of(code: int, scale: Number, fmt: StateFormat) -> Number:
    """+-value(k) * scale."""
    sign, k = divmod(code, fmt.largest + 1)
    value = fmt.value(k)
    return BINARY32.mul(negative(value) if sign else value, scale)


def pack(codes: Sequence[int], bits: int) -> list[int]:
    """The bytes of one row of codes, element 0 in the lowest bits; the last byte is filled up with zeros."""
    row = sum(code << (bits * j) for j, code in enumerate(codes))
    return list(row.to_bytes(-(-len(codes) * bits // 8), "little"))


def unpack(row: Sequence[int], bits: int, columns: int) -> list[int]:
    """The codes of one row of bytes."""
    whole = int.from_bytes(bytes(row), "little")
    return [whole >> (bits * j) & ((1 << bits) - 1) for j in range(columns)]


def encode(
    momenta: Sequence[Number], noise: Iterable[int], columns: int, fmt: StateFormat
) -> tuple[list[int], list[int]]:
    """(bytes, bits of scales) of a momentum in rows of ``columns``. Blocks run along a row and never cross it."""
    rows = [momenta[start : start + columns] for start in range(0, len(momenta), columns)]
    whole = None if fmt.block else absmax_of(momenta)
    packed: list[int] = []
    scales: list[int] = [] if whole is None else [BINARY32.to_bits(scale_of(whole, fmt))]
    draw = iter(noise)
    for row in rows:
        codes: list[int] = []
        for block in _blocks(row, fmt.block or columns):
            absmax = absmax_of(block) if whole is None else whole
            if whole is None:
                scales.append(BINARY32.to_bits(scale_of(absmax, fmt)))
            inverse = inverse_of(absmax, fmt)
            codes += [code_of(m, inverse, next(draw), fmt) for m in block]
        packed += pack(codes, fmt.bits)
    return packed, scales


def decode(packed: Sequence[int], scales: Sequence[int], columns: int, fmt: StateFormat) -> list[Number]:
    """The momentum that bytes and scales stand for, in logical row-major order."""
    width = -(-columns * fmt.bits // 8)
    momenta = []
    for row, start in enumerate(range(0, len(packed), width)):
        for column, code in enumerate(unpack(packed[start : start + width], fmt.bits, columns)):
            at = row * fmt.blocks(columns) + column // fmt.block if fmt.block else 0
            momenta.append(number_of(code, BINARY32.from_bits(scales[at]), fmt))
    return momenta


def _blocks(row: Sequence[Number], size: int) -> Iterator[Sequence[Number]]:
    for start in range(0, len(row), size):
        yield row[start : start + size]
