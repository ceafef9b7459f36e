"""Checks of arguments: every message names the argument, its value, the rule, and the way out."""

from __future__ import annotations

import ast
import math
import numbers
import re
from collections.abc import Sequence
from typing import Any


def choice(name: str, value: object, allowed: Sequence[Any], hint: str = "") -> None:
    """Refuse a ``value`` that is not one of ``allowed``; types are compared too, so ``True`` and 1.0 are not 1.

    Raises:
        TypeError: no allowed value has this type.
        ValueError: the type is right and the value is not.
    """
    kinds = {type(option) for option in allowed}
    if type(value) in kinds and value in allowed:
        return
    rule = f"must be one of {', '.join(map(repr, allowed))}"
    raise refusal(ValueError, name, value, rule, hint) if type(value) in kinds else mistyped(name, value, rule, hint)


def integer(name: str, value: object, low: int, high: int | None = None, hint: str = "") -> int:
    """Refuse anything but an int in ``[low, high]``; a bool is no int here. ``high=None`` sets no upper end."""
    rule = f"must be an int >= {low}" if high is None else f"must be an int in {low}..{high}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise mistyped(name, value, rule, hint)
    whole = int(value)
    if whole < low or (high is not None and whole > high):
        raise refusal(ValueError, name, value, rule, hint)
    return whole


def number(name: str, value: object, hint: str = "") -> float:
    """Refuse anything but a finite real number >= 0."""
    rule = "must be a finite number >= 0"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise mistyped(name, value, rule, hint)
    try:
        found = float(value)
    except OverflowError:  # an int or fraction beyond all floats
        found = math.inf
    if not math.isfinite(found) or value < 0:
        raise refusal(ValueError, name, value, rule, hint)
    return found


def flag(name: str, value: object) -> None:
    """Refuse anything but ``True`` and ``False``."""
    if not isinstance(value, bool):
        raise mistyped(name, value, "must be True or False")


def refusal(kind: type[Exception], name: str, value: object, rule: str, hint: str = "") -> Exception:
    """The exception to raise for argument ``name``; ``hint`` says the way out where the rule does not."""
    return kind(f"{name}={shown(value)} is not accepted: it {rule}" + (f". {hint}" if hint else ""))


def mistyped(name: str, value: object, rule: str, hint: str = "") -> Exception:
    """Return the TypeError to raise for argument ``name``: it says the type of ``value`` and how to write a text."""
    return refusal(TypeError, name, value, rule, f"{hint} {_type_of(value)}".lstrip())


#: A number with an exponent: sign, digits, point and digits, sign and digits of the exponent.
_EXPONENT = re.compile(r"([-+]?)(\d*)(\.\d*)?[eE]([-+]?)(\d+)")


def _type_of(value: object) -> str:
    """Return the type of a value; for texts and whole floats also what to write instead."""
    says = f"Its type is {type(value).__name__}"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return f"{says}: write {int(value)} if a number is meant."
    if not isinstance(value, str) or len(value) > 200:
        return f"{says}."
    text = value.strip()
    number = _EXPONENT.fullmatch(text)
    if number and number[2] + (number[3] or "").strip("."):
        sign, whole, part, direction, exponent = number.groups()
        part = part if part and part != "." else ".0"
        written = f"{sign}{whole or 0}{part}e{direction or '+'}{exponent}"
        return (
            f"{says}: YAML reads a number as text if it lacks the point or the sign of its exponent; write {written}."
        )
    if text.lower() in ("true", "false", "none", "null"):
        return f"{says}: write {'None' if text.lower() == 'null' else text.capitalize()} without quotes."
    try:
        literal = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return f"{says}."
    return f"{says}." if isinstance(literal, str) else f"{says}: write {shown(literal)} without quotes."


def shown(value: object) -> str:
    """Return a value on one line; for tensors, modules and the like, whose text takes many, a description."""
    try:
        text = repr(value)
    except ValueError:  # an int with more digits than Python writes
        return f"<{type(value).__name__}>"
    if "\n" not in text:
        return text if len(text) <= 200 else f"{text[:200]}..."
    shape = None if getattr(value, "is_nested", False) else getattr(value, "shape", None)
    return f"<{type(value).__name__}>" if shape is None else f"<{type(value).__name__} of shape {tuple(shape)}>"
