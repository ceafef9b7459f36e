"""Float arithmetic as PTX defines it: round to nearest even, subnormal numbers kept, one NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .types import COMPARISONS, PRED, TYPES, Array, Rule, Type

#: The NaN of every float32 result.
NAN = np.uint32(0x7FFFFFFF)

_NANS: dict[int, Any] = {16: np.uint16(0x7FFF), 32: NAN, 64: np.uint64(0xFFF8000000000000)}


def bits(values: Any) -> Array:
    """Return the bits of floats, with the one NaN of PTX for every NaN."""
    values = np.asarray(values)
    width = values.dtype.itemsize * 8
    plain = values.view(TYPES[f"u{width}"].unsigned)
    unordered = np.isnan(values)
    return np.asarray(np.where(unordered, _NANS[width], plain) if unordered.any() else plain)


def arithmetic(name: str, modifiers: list[str]) -> Rule | None:
    """Return the rule of ``add``, ``sub``, ``mul``, ``div``, ``rcp``, ``sqrt``, ``fma`` for floats, or None.

    Without a rounding modifier, ptxas may fuse a product and a sum. Here each is rounded.
    """
    *rounding, of = modifiers
    wanted = [["rn"]] if name in ("div", "rcp", "sqrt", "fma") else [[], ["rn"]]
    if of not in ("f32", "f64", "f32x2") or rounding not in wanted:
        return None
    type = TYPES[of]
    if name == "fma":
        return _fma(type)
    functions: dict[str, Callable[..., Any]] = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
    if of != "f32x2":
        functions |= {"div": np.divide, "sqrt": np.sqrt, "rcp": _reciprocal}
    if name not in functions:
        return None
    operands = (type,) * (1 if name in ("sqrt", "rcp") else 2)
    if type.kind == "x2":
        return Rule(paired(_computed(functions[name], TYPES["f32"])), operands, type, shadow=paired_shadow)
    return Rule(_computed(functions[name], type), operands, type)


def _computed(function: Callable[..., Any], type: Type) -> Callable[..., Array]:
    def result(*operands: Array) -> Array:
        return bits(function(*(operand.view(type.numbers) for operand in operands)))

    return result


def _reciprocal(value: Any) -> Any:
    return np.divide(value.dtype.type(1), value)


def halves(value: Array) -> tuple[Array, Array]:
    """Return the lower and the upper 32 bits of 64."""
    return (value & np.uint64(0xFFFFFFFF)).astype(np.uint32), (value >> np.uint64(32)).astype(np.uint32)


def joined(low: Array, high: Array) -> Array:
    """Return 64 bits from two halves."""
    return low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))


def paired(function: Callable[..., Array]) -> Callable[..., Array]:
    """Return the function of pairs of float32 that computes each half with ``function``."""

    def result(*operands: Array) -> Array:
        low, high = zip(*map(halves, operands), strict=True)
        return joined(function(*low), function(*high))

    return result


def paired_shadow(values: list[Array], shadows: list[Array]) -> Array:
    """Return the undefined bits of a pair: an undefined half makes the same half undefined."""
    del values
    low, high = zip(*map(halves, shadows), strict=True)
    return joined(
        *(
            np.where(sum(each != 0 for each in half) != 0, NAN | np.uint32(1 << 31), np.uint32(0))
            for half in (low, high)
        )
    )


def _fma(type: Type) -> Rule | None:
    operands = (type,) * 3
    if type.kind == "x2":
        return Rule(paired(_fused), operands, type, shadow=paired_shadow)
    return Rule(_fused, operands, type) if type.bits == 32 else None


def _fused(a: Array, b: Array, c: Array) -> Array:
    """Return a*b + c, rounded once: a binary64 sum rounded to odd, and that to binary32 (Boldo and Melquiond, 2008)."""
    x, y, z = (np.atleast_1d(each.view(np.float32)).astype(np.float64) for each in (a, b, c))
    product = x * y  # exact: 48 bits
    total = product + z
    back = total - product
    error = (product - (total - back)) + (z - back)
    whole = np.atleast_1d(total).view(np.int64)
    inexact = np.isfinite(total) & (error != 0) & (whole & 1 == 0)
    towards = np.where((error > 0) == (total > 0), 1, -1)
    return bits((whole + np.where(inexact, towards, 0)).view(np.float64).astype(np.float32))


def sign(name: str, modifiers: list[str]) -> Rule | None:
    """Return the rule of ``abs``, ``neg`` and ``copysign``, which only touch the sign bit, or None."""
    if len(modifiers) != 1 or modifiers[0] not in ("f32", "f64"):
        return None
    type = TYPES[modifiers[0]]
    top = type.unsigned(1 << (type.bits - 1))
    if name == "copysign":
        return Rule(lambda a, b: (a & top) | (b & ~top), (type, type), type)
    return Rule((lambda a: a & ~top) if name == "abs" else (lambda a: a ^ top), (type,), type)


def extreme(name: str, modifiers: list[str]) -> Rule | None:
    """Return the rule of ``min`` and ``max`` for float32, or None: a NaN loses, with ``.NaN`` it wins; -0 < +0."""
    *how, of = modifiers
    if of != "f32" or how not in ([], ["NaN"]):
        return None

    def result(a: Array, b: Array) -> Array:
        chosen = np.where((_order(a) < _order(b)) == (name == "min"), a, b)
        first, second = np.isnan(a.view(np.float32)), np.isnan(b.view(np.float32))
        if how:
            return np.where(first | second, NAN, chosen)
        return np.where(first & second, NAN, np.where(first, b, np.where(second, a, chosen)))

    return Rule(result, (TYPES[of],) * 2, TYPES[of])


def _order(value: Array) -> Array:
    """Return integers in the order of the floats."""
    integer = value.view(np.int32)
    return np.where(integer < 0, np.int32(-(2**31)) - integer - np.int32(1), integer)


def comparison(operator: str, of: str) -> Rule | None:
    """Return the rule of a comparison of floats, or None; ``u`` at its end makes it true for NaN."""
    if of not in ("f32", "f64"):
        return None
    type = TYPES[of]
    if operator in ("num", "nan"):

        def result(a: Array, b: Array) -> Array:
            unordered = np.isnan(a.view(type.numbers)) | np.isnan(b.view(type.numbers))
            return np.asarray(unordered if operator == "nan" else ~unordered)

        return Rule(result, (type, type), PRED)
    unordered = operator.endswith("u")
    compare = COMPARISONS.get(operator.removesuffix("u"))
    if compare is None:
        return None

    def compared(a: Array, b: Array) -> Array:
        x, y = a.view(type.numbers), b.view(type.numbers)
        either = np.isnan(x) | np.isnan(y)
        return np.asarray(compare(x, y) | either if unordered else compare(x, y) & ~either)

    return Rule(compared, (type, type), PRED)
