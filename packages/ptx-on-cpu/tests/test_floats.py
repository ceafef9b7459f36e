"""Float instructions against exact fractions and numpy's scalars."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from .programs import compute

NAN = 0x7FFFFFFF

#: Zeros, subnormals, ties, neighbours of powers of two, the largest, infinities, NaNs of both signs.
SPECIAL = [
    0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x00800000, 0x3F800000, 0xBF800000, 0x3F800001, 0x3F7FFFFF,
    0x33800000, 0x34000000, 0x4B800000, 0x4B7FFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFF800001,
    0x40490FDB, 0x3EAAAAAB, 0x5F000000, 0x1E800000, 0x3F000000, 0x3FC00000, 0x40200000, 0xC0200000,
]  # fmt: skip
PAIRS = list(product(SPECIAL, SPECIAL))
LEFT, RIGHT = [a for a, _ in PAIRS], [b for _, b in PAIRS]


def number(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def nearest(value: Fraction, negative_zero: bool = False) -> int:
    """Round a fraction to binary32, to nearest even, by integers alone; return its bits."""
    sign = 0x80000000 if value < 0 or (value == 0 and negative_zero) else 0
    value = abs(value)
    if value == 0:
        return sign
    exponent = max(math.floor(math.log2(value)) if value < 2**900 else 900, -126)
    while value >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while exponent > -126 and value < Fraction(2) ** exponent:
        exponent -= 1
    steps = value / Fraction(2) ** (exponent - 23)
    whole = steps.numerator // steps.denominator
    rest = steps - whole
    whole += rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2)
    found = ((exponent + 126) << 23) + whole
    return sign | min(found, 0x7F800000)


def expected(name: str, a: int, b: int) -> int:
    x, y = number(a), number(b)
    sign = (a ^ b) >> 31
    if name == "sub":
        return expected("add", a, b ^ 0x80000000) if not math.isnan(y) else NAN
    if math.isnan(x) or math.isnan(y):
        return NAN
    if name == "add":
        if math.isinf(x) or math.isinf(y):
            return NAN if math.isinf(x) and math.isinf(y) and x != y else (a if math.isinf(x) else b)
        return nearest(Fraction(x) + Fraction(y), a >> 31 == 1 and b >> 31 == 1)
    if name == "mul":
        if math.isinf(x) or math.isinf(y):
            return NAN if 0 in (x, y) else 0x7F800000 | sign << 31
        return nearest(Fraction(x) * Fraction(y), sign == 1)
    if math.isinf(x) or y == 0:
        return NAN if (math.isinf(x) and math.isinf(y)) or x == y == 0 else 0x7F800000 | sign << 31
    if math.isinf(y):
        return sign << 31
    return nearest(Fraction(x) / Fraction(y), sign == 1)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_arithmetic_is_that_of_fractions_rounded_once(name: str) -> None:
    wanted = [expected(name, a, b) for a, b in PAIRS]
    assert compute(f"{name}.rn.f32", [32, 32], [LEFT, RIGHT], 32) == wanted
    if name != "div":
        assert compute(f"{name}.f32", [32, 32], [LEFT, RIGHT], 32) == wanted
        pairs = [a | b << 32 for a, b in PAIRS], [b | a << 32 for a, b in PAIRS]
        both = [expected(name, a, b) | expected(name, b, a) << 32 for a, b in PAIRS]
        assert compute(f"{name}.rn.f32x2", [64, 64], list(pairs), 64) == both


def test_fma_rounds_once() -> None:
    rng = np.random.default_rng(1)
    rows = [tuple(int(v) for v in rng.choice(SPECIAL[:16] + SPECIAL[20:], 3)) for _ in range(300)]
    rows += [
        (0x3F800001, 0x3F7FFFFF, 0xBF800000),
        (0x3F800001, 0x3F800001, 0x80000000),
        (0x00000001, 0x3F000000, 0x00000001),
    ]
    rows += [tuple(int(v) for v in rng.integers(0x3F000000, 0x40000000, 3)) for _ in range(300)]
    wanted = []
    for a, b, c in rows:
        exact = Fraction(number(a)) * Fraction(number(b)) + Fraction(number(c))
        wanted.append(nearest(exact, ((a ^ b) >> 31 == 1) and c >> 31 == 1))
    assert compute("fma.rn.f32", [32] * 3, [list(column) for column in zip(*rows, strict=True)], 32) == wanted
    halves = [[v | v << 32 for v in column] for column in zip(*rows, strict=True)]
    assert compute("fma.rn.f32x2", [64] * 3, halves, 64) == [v | v << 32 for v in wanted]
    assert compute("fma.rn.f32", [32] * 3, [[0x7F800000, 0x7FC00000], [0, 0], [0, 0]], 32) == [NAN, NAN]


def test_roots_and_reciprocals() -> None:
    roots = [
        NAN if math.isnan(number(a)) or number(a) < 0 else int(np.sqrt(np.float32(number(a))).view(np.uint32))
        for a in SPECIAL
    ]
    assert compute("sqrt.rn.f32", [32], [SPECIAL], 32) == roots
    assert compute("rcp.rn.f32", [32], [SPECIAL], 32) == [expected("div", 0x3F800000, a) for a in SPECIAL]


def test_signs() -> None:
    assert compute("abs.f32", [32], [SPECIAL], 32) == [a & 0x7FFFFFFF for a in SPECIAL]
    assert compute("neg.f32", [32], [SPECIAL], 32) == [a ^ 0x80000000 for a in SPECIAL]
    wanted = [(a & 0x80000000) | (b & 0x7FFFFFFF) for a, b in PAIRS]
    assert compute("copysign.f32", [32, 32], [LEFT, RIGHT], 32) == wanted


@pytest.mark.parametrize("name", ["min", "max"])
def test_extremes(name: str) -> None:
    def chosen(a: int, b: int, nan: bool) -> int:
        x, y = number(a), number(b)
        if math.isnan(x) or math.isnan(y):
            both = math.isnan(x) and math.isnan(y)
            return NAN if nan or both else (b if math.isnan(x) else a)
        key = {v: (number(v), 0 if v >> 31 else 1) for v in (a, b)}  # -0 below +0
        return (min if name == "min" else max)((a, b), key=key.__getitem__)

    assert compute(f"{name}.f32", [32, 32], [LEFT, RIGHT], 32) == [chosen(a, b, False) for a, b in PAIRS]
    assert compute(f"{name}.NaN.f32", [32, 32], [LEFT, RIGHT], 32) == [chosen(a, b, True) for a, b in PAIRS]


@pytest.mark.parametrize("operator", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons(operator: str) -> None:
    compare = {"eq": "__eq__", "ne": "__ne__", "lt": "__lt__", "le": "__le__", "gt": "__gt__", "ge": "__ge__"}[operator]
    for suffix, unordered in (("", 0), ("u", 1)):
        wanted = []
        for a, b in PAIRS:
            x, y = number(a), number(b)
            wanted.append(unordered if math.isnan(x) or math.isnan(y) else int(getattr(x, compare)(y)))
        assert compute(f"setp.{operator}{suffix}.f32", [32, 32], [LEFT, RIGHT], 1) == wanted


def test_orderedness() -> None:
    either = [int(math.isnan(number(a)) or math.isnan(number(b))) for a, b in PAIRS]
    assert compute("setp.nan.f32", [32, 32], [LEFT, RIGHT], 1) == either
    assert compute("setp.num.f32", [32, 32], [LEFT, RIGHT], 1) == [1 - each for each in either]


def test_binary64() -> None:
    values = [0.0, -0.0, 5e-324, 1.0, 1 + 2**-52, 1e308, math.inf, -math.inf, math.nan, 0.1, 3.0]
    pairs = list(product(values, values))
    columns = [np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True)]
    for name, function in (("add", np.add), ("mul", np.multiply), ("sub", np.subtract)):
        with np.errstate(all="ignore"):
            wanted = [function(np.float64(a), np.float64(b)) for a, b in pairs]
        found = compute(f"{name}.rn.f64", [64, 64], columns, 64)
        for want, got in zip(wanted, found, strict=True):
            assert got == (0xFFF8000000000000 if math.isnan(want) else int(np.float64(want).view(np.uint64)))
