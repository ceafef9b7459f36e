"""Pseudo-random numbers that never change: a counter, hashed. Integers only.

Draw number n of a stream is the splitmix64 finalizer (Steele, Lea, Flood 2014) of key + n * 0x9E3779B97F4A7C15, modulo
2^64; the key is the 64-bit FNV-1a hash of the stream's name. No library's generator is used, as it might change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from lionbits_conformance.oracle.floats import BINARY32, Binary, Number, greater, is_finite, magnitude, negative
from lionbits_conformance.oracle.formats import StateFormat

Item = TypeVar("Item")

_WORD = (1 << 64) - 1

#: Bit patterns of binary32 that have surprised someone: zeros, subnormals, ones, the largest; not what is not finite.
EDGES = (
    *(0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x807FFFFF, 0x00800000, 0x80800000, 0x00800001),
    *(0x3F7FFFFF, 0x3F800000, 0xBF800000, 0x3F800001, 0x33800000, 0x34000000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F000000),
)

#: Infinities and NaN.
NOT_FINITE = (0x7F800000, 0xFF800000, 0x7FC00000)


class Draws:
    """A stream of draws."""

    def __init__(self, name: str) -> None:
        self._key = 0xCBF29CE484222325
        for byte in name.encode():
            self._key = ((self._key ^ byte) * 0x100000001B3) & _WORD
        self._count = 0

    def word(self) -> int:
        """64 bits."""
        z = (self._key + self._count * 0x9E3779B97F4A7C15) & _WORD
        self._count += 1
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = ((z ^ (z >> shift)) * factor) & _WORD
        return z ^ (z >> 31)

    def below(self, n: int) -> int:
        """An integer in 0..n-1; for the small n used here, as good as uniform."""
        return (self.word() >> 32) * n >> 32

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.below(len(items))]

    def normal(self, power: int = 0) -> Number:
        """A binary32 number below 2^power in magnitude, about as often in each part of that interval; either sign."""
        word, halvings = self.word(), 0
        while word & 1 and halvings < 30:
            word, halvings = word >> 1, halvings + 1
        word = self.word()
        return BINARY32.round((word >> 63, 1 << 23 | (word & 0x7FFFFF), power - 24 - halvings))

    def any(self) -> Number:
        """A finite binary32 number of any bit pattern."""
        while True:
            x = BINARY32.from_bits(self.word() & 0xFFFFFFFF)
            if is_finite(x):
                return x

    def edge(self) -> Number:
        """One of the numbers at which implementations tend to fail."""
        return BINARY32.from_bits(self.pick(EDGES))

    def tie(self, fmt: StateFormat, power: int) -> Number:
        """A value of a format or the midpoint of two, often the largest, times 2^power; either sign."""
        k = self.pick((self.below(fmt.largest), fmt.largest))
        low, high = fmt.value(k), fmt.value(min(k + 1, fmt.largest))
        number = self.pick((low, BINARY32.mul(BINARY32.add(low, high), (0, 1, -1))))
        scaled = BINARY32.mul(number, (0, 1, power))
        return negative(scaled) if self.below(2) else scaled

    def cancelling(self, m: Number, b: Number, one_minus_b: Number) -> Number:
        """A gradient g with m*b + g*(1-b) next to zero: the nearest such, or one or two units of the last place off."""
        g = BINARY32.div(negative(BINARY32.mul(m, b)), one_minus_b)
        if not is_finite(g) or not greater(magnitude(g), (0, 1, -120)) or not greater((0, 1, 120), magnitude(g)):
            return self.normal()
        return BINARY32.from_bits(BINARY32.to_bits(g) + self.below(5) - 2)

    def value(self, kind: str, power: int) -> Number:
        """A number of a kind: normal, zeros, tiny, huge, edges, notfinite (mostly normal), or ``ties:eXmY``."""
        if kind == "zeros":
            return self.pick(((0, 0, 0), (1, 0, 0), (0, 0, 0), (1, 0, 0), self.normal(power)))
        if kind == "tiny":
            return self.normal(-135)
        if kind == "huge":
            return self.normal(128)
        if kind == "edges":
            return self.pick((self.edge(), self.any()))
        if kind == "notfinite" and self.below(8) == 0:
            return BINARY32.from_bits(self.pick(NOT_FINITE))
        if kind.startswith("ties:"):
            return self.tie(StateFormat.named(kind.removeprefix("ties:")), power)
        return self.normal(power)

    def pattern(self, kind: str, power: int, binary: Binary) -> int:
        """The bits of such a number in a type, rounded to it."""
        return binary.to_bits(binary.round(self.value(kind, power)))
