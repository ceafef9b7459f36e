"""Binary floating point in integers: every operation is exact, and is then rounded once.

A number is ``(sign, significand, exponent)`` and means (-1)^sign * significand * 2^exponent, significand an integer
of any length: all values of a binary format are such *dyadic* numbers, and so are their sums, differences and
products, which makes Python's integers an exact and quick stand-in for fractions. The quotient and the root of dyadic
numbers need not be dyadic. They are carried to two bits beyond the format, and one bit more says whether
anything was left over; as rounding only asks on which side of a midpoint a value lies, or whether it is one, that
decides it as the exact value would.

Zero has a sign. What is not finite has a negative significand: ``INFINITE`` or ``NOT_A_NUMBER``. NaNs carry no sign
and no payload here: two NaNs are the same NaN.
"""

from __future__ import annotations

from fractions import Fraction
from math import isqrt
from typing import TypeAlias

#: (sign, significand, exponent): (-1)^sign * significand * 2^exponent.
Number: TypeAlias = tuple[int, int, int]

INFINITE, NOT_A_NUMBER = -1, -2  # in place of a significand

ZERO: Number = (0, 0, 0)
ONE: Number = (0, 1, 0)
MINUS_ONE: Number = (1, 1, 0)
INFINITY: Number = (0, INFINITE, 0)
NAN: Number = (0, NOT_A_NUMBER, 0)


class Binary:
    """An IEEE-754 binary format: ``precision`` bits of significand, normal exponents in ``low``..``high``.

    Every operation takes exact numbers, is carried out exactly, and rounds once: to nearest, ties to even, with
    gradual underflow, and to infinity from half a unit above the largest number on.
    """

    def __init__(self, name: str, precision: int, high: int) -> None:
        self.name = name
        self.precision = precision
        self.high = high
        self.low = 1 - high
        self.unit = self.low - (precision - 1)  # exponent of the smallest subnormal, the finest unit there is
        self.fraction_bits = precision - 1
        self.exponent_bits = high.bit_length() + 1
        self.width = 1 + self.exponent_bits + self.fraction_bits

    def round(self, x: Number) -> Number:
        """The number of this format nearest to ``x``; of two equally near ones, that with an even significand."""
        sign, significand, exponent = x
        if significand <= 0:
            return x if significand else (sign, 0, 0)
        dropped = max(significand.bit_length() - self.precision, self.unit - exponent)
        if dropped > 0:
            kept = significand >> dropped
            residual, half = significand - (kept << dropped), 1 << (dropped - 1)
            if residual > half or (residual == half and kept & 1):
                kept += 1
            if not kept:
                return (sign, 0, 0)
            significand, exponent = kept, exponent + dropped
        if significand.bit_length() + exponent > self.high + 1:
            return (sign, INFINITE, 0)
        return (sign, significand, exponent)

    def add(self, a: Number, b: Number) -> Number:
        """a + b. Infinities of unlike signs make NaN; numbers that cancel make +0, two negative zeros -0."""
        sign_a, x, exponent_a = a
        sign_b, y, exponent_b = b
        if x < 0 or y < 0:
            if NOT_A_NUMBER in {x, y} or (x == y and sign_a != sign_b):
                return NAN
            return a if x < 0 else b
        if exponent_a > exponent_b:
            x, exponent_a = x << (exponent_a - exponent_b), exponent_b
        else:
            y <<= exponent_b - exponent_a
        total = (-x if sign_a else x) + (-y if sign_b else y)
        if total == 0:
            return (sign_a & sign_b, 0, 0)
        return self.round((0, total, exponent_a) if total > 0 else (1, -total, exponent_a))

    def sub(self, a: Number, b: Number) -> Number:
        """a - b, which is a + (-b)."""
        return self.add(a, negative(b))

    def mul(self, a: Number, b: Number) -> Number:
        """a * b; zero times infinity is NaN."""
        sign_a, x, exponent_a = a
        sign_b, y, exponent_b = b
        if x < 0 or y < 0:
            if NOT_A_NUMBER in {x, y} or not (x and y):
                return NAN
            return (sign_a ^ sign_b, INFINITE, 0)
        return self.round((sign_a ^ sign_b, x * y, exponent_a + exponent_b))

    def div(self, a: Number, b: Number) -> Number:
        """a / b; 0/0 and inf/inf are NaN, anything else over zero is infinite."""
        sign, x, y = a[0] ^ b[0], a[1], b[1]
        if NOT_A_NUMBER in {x, y} or (x == y and x <= 0):
            return NAN
        if x == INFINITE or y == 0:
            return (sign, INFINITE, 0)
        if y == INFINITE or x == 0:
            return (sign, 0, 0)
        lift = max(0, self.precision + 2 + y.bit_length() - x.bit_length())
        quotient, left = divmod(x << lift, y)
        return self.round((sign, quotient << 1 | (left > 0), a[2] - b[2] - lift - 1))

    def sqrt(self, a: Number) -> Number:
        """The square root of a; that of -0 is -0, that of any other negative number NaN."""
        sign, x, exponent = a
        if x == 0:
            return (sign, 0, 0)
        if sign or x < 0:
            return NAN if sign else a
        lift = max(0, 2 * (self.precision + 2) - x.bit_length())
        lift += (exponent - lift) & 1  # half of an even exponent is an exponent
        root = isqrt(x << lift)
        return self.round((0, root << 1 | (root * root != x << lift), (exponent - lift) // 2 - 1))

    def to_bits(self, x: Number) -> int:
        """The bit pattern of a number of this format; of NaN, the quiet one."""
        sign, significand, exponent = x
        top = (1 << self.exponent_bits) - 1
        if significand == NOT_A_NUMBER:
            return (top << self.fraction_bits) | (1 << (self.fraction_bits - 1))
        sign <<= self.width - 1
        if significand == INFINITE:
            return sign | (top << self.fraction_bits)
        if significand == 0:
            return sign
        # Written in units of the finest that its binade has, a significand has `precision` bits, or it is subnormal.
        unit = max(self.unit, significand.bit_length() + exponent - self.precision)
        if exponent >= unit:
            whole = significand << (exponent - unit)
        else:
            whole, left = divmod(significand, 1 << (unit - exponent))
            if left:
                raise ValueError(f"{x} is not a {self.name}: round it first")
        if unit + self.precision > self.high + 1:
            raise ValueError(f"{x} is too large for {self.name}: round it first")
        # The hidden bit of a normal significand adds the one that its biased exponent lacks here.
        return sign | (((unit - self.unit) << self.fraction_bits) + whole)

    def from_bits(self, bits: int) -> Number:
        """The number that a bit pattern of this format means."""
        sign, biased = bits >> (self.width - 1), (bits >> self.fraction_bits) & ((1 << self.exponent_bits) - 1)
        fraction = bits & ((1 << self.fraction_bits) - 1)
        if biased == (1 << self.exponent_bits) - 1:
            return NAN if fraction else (sign, INFINITE, 0)
        if biased == 0:
            return (sign, fraction, self.unit if fraction else 0)
        return (sign, fraction | (1 << self.fraction_bits), self.unit + biased - 1)

    def hex(self, x: Number) -> str:
        """The bit pattern in hexadecimal digits, of fixed width."""
        return f"{self.to_bits(x):0{self.width // 4}x}"


BINARY64 = Binary("binary64", 53, 1023)
BINARY32 = Binary("binary32", 24, 127)
BFLOAT16 = Binary("bfloat16", 8, 127)
BINARY16 = Binary("binary16", 11, 15)


def negative(x: Number) -> Number:
    """-x, zero and infinity included; NaN has no sign to change."""
    return x if x[1] == NOT_A_NUMBER else (1 - x[0], x[1], x[2])


def magnitude(x: Number) -> Number:
    """|x|."""
    return (0, x[1], x[2])


def is_finite(x: Number) -> bool:
    """Neither infinite nor NaN."""
    return x[1] >= 0


def is_nan(x: Number) -> bool:
    """Not a number."""
    return x[1] == NOT_A_NUMBER


def sign_of(x: Number) -> int:
    """(x > 0) - (x < 0): 0 for either zero and for NaN, which compares as neither."""
    if x[1] == 0 or x[1] == NOT_A_NUMBER:
        return 0
    return -1 if x[0] else 1


def greater(a: Number, b: Number) -> bool:
    """a > b; false where either is NaN. Decided by the sign of the exact difference."""
    if is_nan(a) or is_nan(b):
        return False
    if not (is_finite(a) and is_finite(b)):
        return a != b and (a == INFINITY or b == negative(INFINITY))
    return exact(a) > exact(b)


def exact(x: Number) -> Fraction:
    """A finite number as a fraction."""
    sign, significand, exponent = x
    if significand < 0:
        raise ValueError("what is not finite is no fraction")
    signed = -significand if sign else significand
    return Fraction(signed << exponent) if exponent >= 0 else Fraction(signed, 1 << -exponent)


def of_int(n: int) -> Number:
    """An integer, exactly."""
    return (0, n, 0) if n >= 0 else (1, -n, 0)


def of_float(x: float) -> Number:
    """A Python float, exactly, read from its hexadecimal digits: no arithmetic is done on it."""
    text = float(x).hex()
    sign, text = (1, text[1:]) if text.startswith("-") else (0, text)
    if text in {"inf", "nan"}:
        return NAN if text == "nan" else (sign, INFINITE, 0)
    digits, exponent = text.removeprefix("0x").split("p")
    whole, _, fraction = digits.partition(".")
    significand = int(whole + fraction, 16)
    return (sign, significand, int(exponent) - 4 * len(fraction) if significand else 0)
