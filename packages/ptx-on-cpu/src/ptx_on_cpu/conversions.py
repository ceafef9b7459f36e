"""``cvt``: between widths of integers, between integers and floats, between floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .floats import bits
from .types import TYPES, Array, Rule, Type

_INTEGRAL: dict[str, Callable[[Any], Any]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def convert(modifiers: list[str]) -> Rule | None:
    """Return the rule of a ``cvt``, or None. ``.x2`` results have the first operand in the upper half."""
    *how, to, source = modifiers
    if to in ("bf16x2", "f16x2"):
        return _packed(how, to, source)
    if to not in TYPES or source not in TYPES or "b" in (TYPES[to].kind, TYPES[source].kind):
        return None
    target, origin = TYPES[to], TYPES[source]
    saturate = how[-1:] == ["sat"]
    rounding = "".join(how[:-1] if saturate else how)
    function = _function(target, origin, rounding, saturate)
    if function is None:
        return None
    moved = int(target.integer and origin.integer and not saturate)
    return Rule(function, (origin,), target, moved=moved)


def _function(to: Type, source: Type, rounding: str, saturate: bool) -> Callable[[Array], Array] | None:
    if to.integer and source.integer:
        return None if rounding else lambda a: _resized(a, to, source, saturate)
    if to.integer:
        known = source.kind == "f" and rounding in _INTEGRAL
        return (lambda a: _to_integer(a, to, source, rounding)) if known else None
    if source.integer:
        known = to.name in ("f32", "f64") and rounding == "rn" and not saturate
        return (lambda a: bits(a.view(source.numbers).astype(to.numbers))) if known else None
    return _between_floats(to, source, rounding, saturate)


def _resized(value: Array, to: Type, source: Type, saturate: bool) -> Array:
    numbers = value.view(source.numbers)
    if saturate:
        lowest, highest = _range(to)
        low, high = _range(source)
        numbers = np.clip(numbers, source.numbers(max(low, lowest)), source.numbers(min(high, highest)))
    return np.asarray(numbers.astype(to.numbers)).view(to.unsigned)


def _range(type: Type) -> tuple[int, int]:
    return (-(1 << (type.bits - 1)), (1 << (type.bits - 1)) - 1) if type.signed else (0, (1 << type.bits) - 1)


def _to_integer(value: Array, to: Type, source: Type, rounding: str) -> Array:
    """Return integers, the nearest that there are; of a NaN 0, or the highest bit where either has 64 bits."""
    numbers = _INTEGRAL[rounding](value.view(source.numbers).astype(np.float64))
    lowest, highest = _range(to)
    beyond = float(highest + 1)  # a power of two
    inside = np.where(np.isnan(numbers) | (numbers >= beyond) | (numbers < lowest), 0.0, numbers)
    found = np.asarray(inside.astype(to.numbers))
    found = np.where(numbers >= beyond, to.numbers(highest), np.where(numbers < lowest, to.numbers(lowest), found))
    nan = to.unsigned(1 << (to.bits - 1) if 64 in (to.bits, source.bits) else 0)
    return np.asarray(np.where(np.isnan(numbers), nan, found.view(to.unsigned)))


def _between_floats(to: Type, source: Type, rounding: str, saturate: bool) -> Callable[[Array], Array] | None:
    if (to.name, source.name) in (("bf16", "f32"), ("f16", "f32")) and rounding in ("rn", "rz") and not saturate:
        return (lambda a: narrow_bf16(a, rounding)) if to.kind == "bf" else (lambda a: narrow_f16(a, rounding))
    if (to.name, source.name) == ("f32", "bf16") and not rounding and not saturate:
        return lambda a: bits((a.astype(np.uint32) << np.uint32(16)).view(np.float32))
    if to.kind != "f" or source.kind != "f" or ("f16" in (to.name, source.name) and (to.bits, source.bits) != (32, 16)):
        return None
    if to.bits > source.bits and not rounding and not saturate:
        return lambda a: bits(a.view(source.numbers).astype(to.numbers))
    if to.bits < source.bits and rounding == "rn" and not saturate:
        return lambda a: bits(a.view(source.numbers).astype(to.numbers))
    if to.bits == source.bits == 32 and (rounding in _INTEGRAL or (not rounding and saturate)):
        return lambda a: _same_width(a, rounding, saturate)
    return None


def _same_width(value: Array, rounding: str, saturate: bool) -> Array:
    """Return float32 rounded to whole numbers, or limited to 0 ... 1; a NaN becomes 0 where it is limited."""
    numbers = value.view(np.float32)
    if rounding:
        numbers = _INTEGRAL[rounding](numbers)
    if saturate:
        numbers = np.where(numbers > 0, np.minimum(numbers, np.float32(1)), np.float32(0))
    return bits(numbers)


def narrow_bf16(value: Array, rounding: str) -> Array:
    """Return bfloat16 bits of float32 bits, to nearest even (``rn``) or toward zero (``rz``)."""
    up = np.uint32(0x7FFF) + (value >> np.uint32(16) & np.uint32(1)) if rounding == "rn" else np.uint32(0)
    unordered = (value & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(unordered, np.uint32(0x7FFF), (value + up) >> np.uint32(16)).astype(np.uint16)


def narrow_f16(value: Array, rounding: str) -> Array:
    """Return float16 bits of float32 bits, to nearest even (``rn``) or toward zero (``rz``)."""
    numbers = value.view(np.float32)
    near = np.asarray(numbers.astype(np.float16))
    if rounding == "rz":
        too_large = np.abs(near.astype(np.float32)) > np.abs(numbers)
        near = np.asarray(near.view(np.uint16) - too_large.astype(np.uint16)).view(np.float16)
    return bits(near)


def _packed(how: list[str], to: str, source: str) -> Rule | None:
    if source != "f32" or how not in (["rn"], ["rz"]):
        return None
    narrow = narrow_bf16 if to == "bf16x2" else narrow_f16

    def result(upper: Array, lower: Array) -> Array:
        return narrow(upper, how[0]).astype(np.uint32) << np.uint32(16) | narrow(lower, how[0])

    def shadow(values: list[Array], shadows: list[Array]) -> Array:
        del values
        zero = np.uint32(0)
        upper, lower = (
            np.where(each != 0, np.uint32(part), zero) for each, part in zip(shadows, (0xFFFF0000, 0xFFFF), strict=True)
        )
        return upper | lower

    return Rule(result, (TYPES["f32"],) * 2, TYPES["b32"], shadow=shadow)
