"""The oracle's arithmetic against machines that have it: numpy's scalars, torch's casts to bfloat16."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from lionbits_conformance.oracle import formats
from lionbits_conformance.oracle.floats import (
    BFLOAT16,
    BINARY16,
    BINARY32,
    BINARY64,
    Binary,
    Number,
    exact,
    greater,
    is_finite,
    of_float,
    sign_of,
)

MACHINES: dict[Binary, tuple[Any, Any]] = {
    BINARY16: (np.float16, np.uint16),
    BINARY32: (np.float32, np.uint32),
    BINARY64: (np.float64, np.uint64),
}

OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


def patterns(binary: Binary, count: int, seed: str) -> list[int]:
    """Bit patterns: the edges of the format with both signs, and random ones, half of them of like exponents."""
    draw = random.Random(f"{binary.name} {seed}")
    inf = binary.to_bits((0, -1, 0))
    one = binary.to_bits((0, 1, 0))
    hidden = 1 << binary.fraction_bits
    edges = [0, 1, 2, 3, hidden - 1, hidden, hidden + 1, one - 1, one, one + 1, inf - 2, inf - 1, inf, inf + 1]
    found = [e | (s << (binary.width - 1)) for e in edges for s in (0, 1)]
    found += [draw.getrandbits(binary.width) for _ in range(count)]
    near = one ^ (hidden - 1)
    found += [
        (near ^ draw.getrandbits(binary.fraction_bits + 3)) | draw.getrandbits(1) << (binary.width - 1)
        for _ in range(count)
    ]
    draw.shuffle(found)
    return found


def same(binary: Binary, found: Number, expected: int) -> bool:
    inf = binary.to_bits((0, -1, 0))
    if expected % (1 << (binary.width - 1)) > inf:
        return found[1] == -2
    return binary.to_bits(found) == expected


def pairs(binary: Binary, count: int, seed: str) -> tuple[list[int], list[int]]:
    a, b = patterns(binary, count, seed + "a"), patterns(binary, count, seed + "b")
    edges = patterns(binary, 0, seed)
    return a + [x for x in edges for _ in edges], b + [y for _ in edges for y in edges]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("binary", MACHINES, ids=lambda b: b.name)
def test_operations_round_as_the_machine_does(binary: Binary, operation: str) -> None:
    kind, raw = MACHINES[binary]
    a, b = pairs(binary, 4000, operation)
    with np.errstate(all="ignore"):
        values = [np.array(x, dtype=raw).view(kind) for x in (a, b)]
        expected = OPERATIONS[operation](*values).view(raw).tolist()
    work = getattr(binary, operation)
    for x, y, bits in zip(a, b, expected, strict=True):
        found = work(binary.from_bits(x), binary.from_bits(y))
        assert same(binary, found, bits), f"{operation} {x:x} {y:x} -> {bits:x}, not {found}"


@pytest.mark.parametrize("binary", MACHINES, ids=lambda b: b.name)
def test_roots_round_as_the_machine_does(binary: Binary) -> None:
    kind, raw = MACHINES[binary]
    a = patterns(binary, 5000, "sqrt")
    with np.errstate(all="ignore"):
        expected = np.sqrt(np.array(a, dtype=raw).view(kind)).view(raw).tolist()
    for x, bits in zip(a, expected, strict=True):
        found = binary.sqrt(binary.from_bits(x))
        assert same(binary, found, bits), f"sqrt {x:x} -> {bits:x}, not {found}"


@pytest.mark.parametrize("wide", [BINARY64, BINARY32], ids=lambda b: b.name)
@pytest.mark.parametrize("narrow", [BINARY32, BINARY16], ids=lambda b: b.name)
def test_narrowing_rounds_as_the_machine_does(wide: Binary, narrow: Binary) -> None:
    kind, raw = MACHINES[wide]
    a = patterns(wide, 4000, narrow.name)
    # and values near the narrow format's own, its midpoints among them
    shift = wide.fraction_bits - narrow.fraction_bits
    for bits in patterns(narrow, 1000, wide.name):
        value = narrow.from_bits(bits)
        if is_finite(value):
            at = wide.to_bits(value)
            a += [at, at + 1, at + (1 << shift >> 1), at + (1 << shift >> 1) + 1, at + max((1 << shift >> 1) - 1, 0)]
    with np.errstate(all="ignore"):
        machine = np.array(a, dtype=raw).view(kind).astype(MACHINES[narrow][0])
        expected = machine.view(MACHINES[narrow][1]).tolist()
    for x, bits in zip(a, expected, strict=True):
        assert same(narrow, narrow.round(wide.from_bits(x)), bits), f"{x:x} -> {bits:x}"


def test_bfloat16_rounds_as_torch_casts() -> None:
    a = patterns(BINARY32, 10000, "bf16")
    a += [bits << 16 | low for bits in patterns(BFLOAT16, 2000, "ties") for low in (0x7FFF, 0x8000, 0x8001)]
    signed = torch.tensor(a, dtype=torch.int64).to(torch.int32)
    expected = signed.view(torch.float32).to(torch.bfloat16).view(torch.int16).tolist()
    for x, bits in zip(a, expected, strict=True):
        assert same(BFLOAT16, BFLOAT16.round(BINARY32.from_bits(x)), bits % 2**16), f"{x:x} -> {bits:x}"


@pytest.mark.parametrize("binary", [BINARY16, BFLOAT16], ids=lambda b: b.name)
def test_every_pattern_of_16_bits_comes_back(binary: Binary) -> None:
    inf = binary.to_bits((0, -1, 0))
    for bits in range(2**16):
        x = binary.from_bits(bits)
        assert bits % 2**15 > inf or binary.to_bits(x) == bits
        assert binary.round(x)[1:] == x[1:] or x[1] > 0
        if is_finite(x):
            assert binary.to_bits(binary.round(x)) == bits


def test_python_floats_are_read_exactly() -> None:
    for bits in patterns(BINARY64, 5000, "float"):
        value = float(np.array(bits, dtype=np.uint64).view(np.float64))
        x = of_float(value)
        assert x[1] == -2 if value != value else BINARY64.to_bits(x) == bits  # noqa: PLR0124
        if is_finite(x):
            assert exact(x) == Fraction(value)


def test_comparisons_are_the_machines() -> None:
    a, b = pairs(BINARY32, 2000, "compare")
    x, y = (np.array(bits, dtype=np.uint32).view(np.float32) for bits in (a, b))
    signs = np.nan_to_num(np.sign(x)).astype(int).tolist()
    for p, q, more, sign in zip(a, b, (x > y).tolist(), signs, strict=True):
        assert greater(BINARY32.from_bits(p), BINARY32.from_bits(q)) == more
        assert sign_of(BINARY32.from_bits(p)) == sign


def test_a_number_that_was_not_rounded_has_no_bits() -> None:
    for unrounded in ((0, 2**24 + 1, 0), (0, 1, 128), (0, 1, -150)):
        with pytest.raises(ValueError, match="round it first"):
            BINARY32.to_bits(unrounded)


def test_ticks_are_the_bits_of_a_scaled_number() -> None:
    """t = bits(y * 2^-127) with gradual underflow, the other way of saying it."""
    numbers: Sequence[Number] = [BINARY32.from_bits(bits & 0x7FFFFFFF) for bits in patterns(BINARY32, 8000, "ticks")]
    for y in numbers:
        if is_finite(y) and not greater(y, (0, 1, 17)):
            assert formats.ticks(y) == BINARY32.to_bits(BINARY32.mul(y, (0, 1, -127)))
