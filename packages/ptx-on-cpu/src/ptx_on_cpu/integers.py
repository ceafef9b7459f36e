"""Integer arithmetic as PTX defines it: sums and products wrap around, quotients are truncated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .types import COMPARISONS, PRED, TYPES, Array, Rule, Type

_UNSIGNED_COMPARISONS = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def _type(modifiers: list[str], widths: tuple[int, ...] = (16, 32, 64), kinds: str = "us") -> Type | None:
    type = TYPES.get(modifiers[-1]) if modifiers else None
    return type if type and type.kind in kinds and type.bits in widths else None


def arithmetic(name: str, modifiers: list[str]) -> Rule | None:
    """Return the rule of ``add``, ``sub``, ``min``, ``max``, ``div``, ``rem``, ``abs``, ``neg``, or None."""
    type = _type(modifiers)
    if type is None or len(modifiers) != 1:
        return None
    functions: dict[str, Callable[..., Any]] = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}
    if name in functions:
        return Rule(_computed(functions[name], type), (type, type), type)
    if name in ("div", "rem"):
        part = int(name == "rem")
        return Rule(
            lambda a, b: _divided(a, b, type)[part], (type,) * 2, type, 0, _division_shadow, makes_undefined=True
        )
    if not type.signed:
        return None
    return Rule(
        (lambda a: _magnitude(a, type)) if name == "abs" else (lambda a: (~a) + type.unsigned(1)), (type,), type
    )


def _computed(function: Callable[..., Any], type: Type) -> Callable[..., Array]:
    def result(*operands: Array) -> Array:
        return np.asarray(function(*(operand.view(type.numbers) for operand in operands))).view(type.unsigned)

    return result


def _magnitude(value: Array, type: Type) -> Array:
    return np.where(value.view(type.numbers) < 0, (~value) + type.unsigned(1), value) if type.signed else value


def _divided(a: Array, b: Array, type: Type) -> tuple[Array, Array]:
    """Return quotient and remainder; the quotient is truncated, the remainder has the sign of ``a``."""
    divisor = _magnitude(b, type)
    quotient, remainder = np.divmod(_magnitude(a, type), np.where(divisor == 0, type.unsigned(1), divisor))
    if not type.signed:
        return quotient, remainder
    minus, opposite = a.view(type.numbers) < 0, (a ^ b).view(type.numbers) < 0
    one = type.unsigned(1)
    return np.where(opposite, ~quotient + one, quotient), np.where(minus, ~remainder + one, remainder)


def _division_shadow(values: list[Array], shadows: list[Array]) -> Array:
    """Return the undefined bits: all, where an operand has any or the divisor is 0."""
    undefined = (shadows[0] != 0) | (shadows[1] != 0) | (values[1] == 0)
    zero = shadows[0].dtype.type(0)
    return np.asarray(np.where(undefined, ~zero, zero))


def product(name: str, modifiers: list[str]) -> Rule | None:
    """Return the rule of ``mul`` and ``mad`` with ``lo``, ``hi`` or ``wide``, or None."""
    if len(modifiers) != 2 or modifiers[0] not in ("lo", "hi", "wide"):
        return None
    part, type = modifiers[0], _type(modifiers)
    if type is None or (part == "wide" and type.bits == 64):
        return None
    result = TYPES[f"{type.kind}{type.bits * 2}"] if part == "wide" else type
    parts: dict[str, Callable[..., Array]] = {
        "lo": np.multiply,
        "hi": lambda a, b: _high(a, b, type),
        "wide": lambda a, b: _wide(a, b, type),
    }
    multiply = parts[part]
    if name == "mul":
        return Rule(multiply, (type, type), result)
    return Rule(lambda a, b, c: multiply(a, b) + c, (type, type, result), result)


def _wide(a: Array, b: Array, type: Type) -> Array:
    double = TYPES[f"{type.kind}{type.bits * 2}"]
    product = a.view(type.numbers).astype(double.numbers) * b.view(type.numbers).astype(double.numbers)
    return np.asarray(product).view(double.unsigned)


def _high(a: Array, b: Array, type: Type) -> Array:
    if type.bits < 64:
        by = TYPES[f"u{type.bits * 2}"].unsigned(type.bits)
        return np.asarray((_wide(a, b, type) >> by).astype(type.unsigned))
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    crossed = (a & low) * (b >> half) + ((a & low) * (b & low) >> half)
    other = (a >> half) * (b & low) + (crossed & low)
    high: Array = (a >> half) * (b >> half) + (crossed >> half) + (other >> half)
    if type.signed:
        zero = np.uint64(0)
        high = high - np.where(a.view(np.int64) < 0, b, zero) - np.where(b.view(np.int64) < 0, a, zero)
    return high


def comparison(operator: str, of: str) -> Rule | None:
    """Return the rule of a comparison of integers or bits, or None."""
    type = _type([of], kinds="bus")
    if type is None:
        return None
    if operator in _UNSIGNED_COMPARISONS:
        if type.kind != "u":
            return None
        operator = _UNSIGNED_COMPARISONS[operator]
    if operator not in (("eq", "ne") if type.kind == "b" else COMPARISONS):
        return None
    compare = COMPARISONS[operator]
    return Rule(lambda a, b: compare(a.view(type.numbers), b.view(type.numbers)), (type, type), PRED)
