"""Conversions against fractions and Python integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from .programs import compute
from .test_floats import NAN, SPECIAL, nearest, number

#: Halfway between two float16 or bfloat16, just below, just above; beyond the largest; subnormal float16.
NARROW = [
    *SPECIAL,
    *(
        base + step
        for base in (
            0x3F801000,
            0x3F803000,
            0x3F808000,
            0x3F818000,
            0x33000000,
            0x387FE000,
            0x477FEFFF,
            0x477FF000,
            0x7F7F8000,
            0x00008000,
        )
        for step in (-1, 0, 1)
    ),
]


def narrowed(value: int, fraction_bits: int, lowest: int, largest: Fraction, toward_zero: bool) -> int:
    """Return the bits of a float16 or bfloat16 for those of a float32, by fractions alone."""
    x = number(value)
    exponent_bits = 15 - fraction_bits
    sign = value >> 31 << 15
    if math.isnan(x):
        return 0x7FFF
    infinity = ((1 << exponent_bits) - 1) << fraction_bits
    if math.isinf(x):
        return sign | infinity
    exact = abs(Fraction(x))
    if exact == 0:
        return sign
    exponent = lowest
    while exact >= Fraction(2) ** (exponent + 1):
        exponent += 1
    steps = exact / Fraction(2) ** (exponent - fraction_bits)
    whole = steps.numerator // steps.denominator
    rest = steps - whole
    if not toward_zero:
        whole += rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2)
    found = ((exponent - lowest) << fraction_bits) + whole
    if toward_zero:
        found = min(found, infinity - 1)
    return sign | min(found, infinity)


@pytest.mark.parametrize("rounding", ["rn", "rz"])
def test_narrowing(rounding: str) -> None:
    halves = [narrowed(v, 10, -14, Fraction(65504), rounding == "rz") for v in NARROW]
    brains = [narrowed(v, 7, -126, Fraction(0), rounding == "rz") for v in NARROW]
    assert compute(f"cvt.{rounding}.f16.f32", [32], [NARROW], 16) == halves
    assert compute(f"cvt.{rounding}.bf16.f32", [32], [NARROW], 16) == brains
    reversed_ = NARROW[::-1]
    assert compute(f"cvt.{rounding}.bf16x2.f32", [32, 32], [NARROW, reversed_], 32) == [
        upper << 16 | lower for upper, lower in zip(brains, brains[::-1], strict=True)
    ]
    assert compute(f"cvt.{rounding}.f16x2.f32", [32, 32], [NARROW, reversed_], 32) == [
        upper << 16 | lower for upper, lower in zip(halves, halves[::-1], strict=True)
    ]


def test_widening() -> None:
    every = [*range(0, 65536, 7), 0x7C00, 0xFC00, 0x7C01, 1, 0x8001]
    wanted = []
    for v in every:
        exponent, fraction = v >> 10 & 31, v & 1023
        value = (
            Fraction(fraction, 2**24) if exponent == 0 else Fraction(1024 + fraction) * Fraction(2) ** (exponent - 25)
        )
        special = (
            (NAN if fraction else 0x7F800000 | v >> 15 << 31) if exponent == 31 else nearest(value) | v >> 15 << 31
        )
        wanted.append(special)
    assert compute("cvt.f32.f16", [16], [every], 32) == wanted
    brains = [v << 16 if (v & 0x7FFF) <= 0x7F80 else NAN for v in every]
    assert compute("cvt.f32.bf16", [16], [every], 32) == brains


INTEGERS = [
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    2**24 + 1,
    2**24 + 3,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**33 + 5,
    2**63 - 1,
    2**63,
    2**64 - 1,
]


def as_type(value: int, kind: str, width: int) -> int:
    value %= 2**width
    return value - 2**width if kind == "s" and value >> (width - 1) else value


@pytest.mark.parametrize("source", ["u16", "s16", "u32", "s32", "u64", "s64", "u8", "s8"])
@pytest.mark.parametrize("to", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_between_integers(source: str, to: str) -> None:
    width, target = int(source[1:]), int(to[1:])
    values = [v % 2 ** max(width, 16) for v in INTEGERS]
    wanted = [as_type(v, source[0], width) for v in values]
    assert compute(f"cvt.{to}.{source}", [max(width, 16)], [values], target) == [v % 2**target for v in wanted]
    low, high = (-(2 ** (target - 1)), 2 ** (target - 1) - 1) if to[0] == "s" else (0, 2**target - 1)
    clamped = [min(max(v, low), high) % 2**target for v in wanted]
    assert compute(f"cvt.sat.{to}.{source}", [max(width, 16)], [values], target) == clamped


def test_a_narrow_result_is_extended_in_a_wide_register() -> None:
    assert compute("cvt.s8.s32", [32], [[0x1FF, 0x7F, 0x80]], 16) == [0xFFFF, 0x7F, 0xFF80]
    assert compute("cvt.u8.u32", [32], [[0x1FF, 0x7F, 0x80]], 16) == [0xFF, 0x7F, 0x80]


@pytest.mark.parametrize("source", ["u32", "s32", "u64", "s64"])
def test_integers_to_floats(source: str) -> None:
    width = int(source[1:])
    values = [v % 2**width for v in INTEGERS]
    wanted = [nearest(Fraction(as_type(v, source[0], width))) for v in values]
    assert compute(f"cvt.rn.f32.{source}", [width], [values], 32) == wanted


@pytest.mark.parametrize("to", ["u32", "s32", "u64", "s64", "s16", "u16"])
@pytest.mark.parametrize("rounding", ["rni", "rzi", "rmi", "rpi"])
def test_floats_to_integers_saturate(rounding: str, to: str) -> None:
    width = int(to[1:])
    low, high = (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if to[0] == "s" else (0, 2**width - 1)
    function = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[rounding]
    wanted = []
    for v in SPECIAL:
        x = number(v)
        if math.isnan(x):
            wanted.append(1 << 63 if width == 64 else 0)
        else:
            exact = (high if x > 0 else low) if math.isinf(x) else function(Fraction(x))
            wanted.append(min(max(exact, low), high) % 2**width)
    assert compute(f"cvt.{rounding}.{to}.f32", [32], [SPECIAL], width) == wanted


def test_saturation_and_whole_numbers() -> None:
    wanted = [0 if math.isnan(number(v)) or number(v) <= 0 else min(v, 0x3F800000) for v in SPECIAL]
    assert compute("cvt.sat.f32.f32", [32], [SPECIAL], 32) == wanted
    for rounding, function in {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}.items():
        whole = [
            NAN if math.isnan(number(v)) else int(function(np.uint32(v).view(np.float32)).view(np.uint32))
            for v in SPECIAL
        ]
        assert compute(f"cvt.{rounding}.f32.f32", [32], [SPECIAL], 32) == whole


def test_between_binary32_and_binary64() -> None:
    values = np.array(
        [0.1, 1 + 2**-24, 1 + 2**-24 + 2**-50, 1e300, -1e-46, math.inf, 7e-46, 1 + 3 * 2**-24], dtype=np.float64
    )
    wanted = [0x7F800000 if v > 1e39 else nearest(Fraction(float(v)), v < 0) for v in values]
    assert compute("cvt.rn.f32.f64", [64], [values], 32) == wanted
    plain = [v for v in SPECIAL if not math.isnan(number(v))]
    assert compute("cvt.f64.f32", [32], [plain], 64) == [int(np.float64(number(v)).view(np.uint64)) for v in plain]
