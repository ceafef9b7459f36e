"""Operands of PTX instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .faults import Place, UnknownInstruction


@dataclass(frozen=True)
class Register:
    """A register, as ``%r1``; ``%tid.x`` and its like have names with a point."""

    name: str


@dataclass(frozen=True)
class Number:
    """A number: an integer, or the ``bits`` of a float that PTX writes as ``0f3F800000`` or ``0d...``."""

    value: int


@dataclass(frozen=True)
class Name:
    """A label, a variable, or ``_`` for a result that nobody reads."""

    name: str


@dataclass(frozen=True)
class Vector:
    """Several operands in braces."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Address:
    """An address in brackets: a register, a variable or a number, and bytes to add."""

    base: Operand
    offset: int


@dataclass(frozen=True)
class Pair:
    """Two results, as ``%r1|%p1``."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Negated:
    """The opposite of a predicate, as ``!%p1``."""

    register: Register


Operand = Register | Number | Name | Vector | Address | Pair | Negated

_NUMBER = re.compile(r"(-?)(0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")


def split(text: str) -> list[str]:
    """Return the parts between commas that stand outside of braces and brackets."""
    parts, depth, begin = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and not depth:
            parts.append(text[begin:i].strip())
            begin = i + 1
    return [*parts, last] if (last := text[begin:].strip()) else parts


def parse_operand(text: str, place: Place) -> Operand:
    """Parse one operand.

    Raises:
        UnknownInstruction: an operand of an unknown form.
    """
    if text[0] == "{" and text[-1] == "}":
        return Vector(tuple(parse_operand(each, place) for each in split(text[1:-1])))
    if text[0] == "[" and text[-1] == "]":
        base, sign, offset = re.fullmatch(r"([^+\-]+|-\d+)\s*(?:([+-])\s*(.+))?", text[1:-1].strip()).groups()  # type: ignore[union-attr]
        number = number_of(offset.strip().removeprefix("+"), place) if offset else 0
        return Address(parse_operand(base.strip(), place), -number if sign == "-" else number)
    if "|" in text:
        first, second = text.split("|")
        return Pair(parse_operand(first.strip(), place), parse_operand(second.strip(), place))
    if text[0] == "!":
        return Negated(Register(text[1:].strip()))
    if text[0] == "%":
        return Register(text)
    if _NUMBER.match(text):
        return Number(number_of(text, place))
    if re.fullmatch(r"[\w$]+", text):
        return Name(text)
    raise UnknownInstruction(f"{place}: operand {text!r} is not known")


def number_of(text: str, place: Place | str) -> int:
    """Return an integer as PTX writes it; of a float, its bits.

    Raises:
        UnknownInstruction: it is no number.
    """
    found = _NUMBER.match(text)
    if not found:
        raise UnknownInstruction(f"{place}: {text!r} is not a number")
    sign, digits = found.groups()
    if digits[:2].lower() in ("0f", "0d"):
        return int(f"0x{digits[2:]}", 0)
    octal = len(digits) > 1 and digits.isdigit() and digits[0] == "0"
    value = int(digits, 8) if octal else int(digits, 0)
    return -value if sign else value
