"""Instructions that move bits: logic, shifts, fields, permutations, selections."""

from __future__ import annotations

from typing import Any

import numpy as np

from .types import PRED, TYPES, Array, Rule, Type

_U32, _B32 = TYPES["u32"], TYPES["b32"]


def _one(modifiers: list[str], *names: str) -> Type | None:
    return TYPES[modifiers[0]] if len(modifiers) == 1 and modifiers[0] in names else None


def logic(name: str, modifiers: list[str]) -> Rule | None:
    """Return the rule of ``and``, ``or``, ``xor``, ``not``, ``cnot``, or None."""
    type = _one(modifiers, "b16", "b32", "b64", *(["pred"] if name != "cnot" else []))
    if type is None:
        return None
    if name == "not":
        return Rule(lambda a: ~a, (type,), type, shadow=lambda values, shadows: shadows[0])
    if name == "cnot":
        return Rule(lambda a: (a == 0).astype(type.unsigned), (type,), type)
    if name == "and":  # a bit that is 0 decides
        return Rule(
            lambda a, b: a & b, (type,) * 2, type, shadow=lambda v, s: (s[0] & s[1]) | (s[0] & v[1]) | (v[0] & s[1])
        )
    if name == "or":
        return Rule(
            lambda a, b: a | b, (type,) * 2, type, shadow=lambda v, s: (s[0] & s[1]) | (s[0] & ~v[1]) | (~v[0] & s[1])
        )
    return Rule(lambda a, b: a ^ b, (type,) * 2, type, shadow=lambda values, shadows: shadows[0] | shadows[1])


def lop3(modifiers: list[str]) -> Rule | None:
    """Return the rule of ``lop3``, any function of three bits by its table, or None."""
    if modifiers != ["b32"]:
        return None

    def result(a: Array, b: Array, c: Array, table: Array) -> Array:
        found: Any = np.uint32(0)
        for case in range(8):
            matching = [value if case >> (2 - i) & 1 else ~value for i, value in enumerate((a, b, c))]
            found = found | np.where(
                table >> np.uint32(case) & np.uint32(1),
                np.bitwise_and.reduce(np.broadcast_arrays(*matching)),
                np.uint32(0),
            )
        return np.asarray(found)

    return Rule(result, (_B32,) * 3 + (_U32,), _B32)


def shift(name: str, modifiers: list[str]) -> Rule | None:
    """Return the rule of ``shl`` and ``shr``, or None: a shift by the width or more leaves no bit but signs."""
    signs = ("u16", "u32", "u64", "s16", "s32", "s64") if name == "shr" else ()
    type = _one(modifiers, "b16", "b32", "b64", *signs)
    if type is None:
        return None

    def result(a: Array, amount: Array) -> Array:
        last = np.uint32(type.bits - 1)
        by = np.minimum(amount, last).astype(type.unsigned)
        if type.signed:
            return np.asarray(a.view(type.numbers) >> by.view(type.numbers)).view(type.unsigned)
        shifted = a << by if name == "shl" else a >> by
        return np.asarray(np.where(amount > last, type.unsigned(0), shifted))

    return Rule(result, (type, _U32), type, moved=1)


def funnel(modifiers: list[str]) -> Rule | None:
    """Return the rule of ``shf``, a shift of 64 bits of which 32 are kept, or None."""
    if len(modifiers) != 3 or modifiers[0] not in ("l", "r") or modifiers[1] not in ("wrap", "clamp"):
        return None
    left, wrap = modifiers[0] == "l", modifiers[1] == "wrap"

    def result(low: Array, high: Array, amount: Array) -> Array:
        by = (amount & np.uint32(31) if wrap else np.minimum(amount, np.uint32(32))).astype(np.uint64)
        both = low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))
        return (both << by >> np.uint64(32) if left else both >> by).astype(np.uint32)

    return Rule(result, (_B32, _B32, _U32), _B32, moved=2) if modifiers[2] == "b32" else None


def field(name: str, modifiers: list[str]) -> Rule | None:
    """Return the rule of ``bfe`` and ``bfi``, which take and put a field of bits, or None."""
    types = ("u32", "u64", "s32", "s64") if name == "bfe" else ("b32", "b64")
    type = _one(modifiers, *types)
    if type is None:
        return None
    full, zero, one = type.unsigned(2**type.bits - 1), type.unsigned(0), type.unsigned(1)

    def mask(length: Array) -> Array:
        part = (one << np.minimum(length, np.uint32(type.bits - 1)).astype(type.unsigned)) - one
        return np.asarray(np.where(length >= type.bits, full, part))

    def shifted(value: Array, by: Array, left: bool) -> Array:
        amount = np.minimum(by, np.uint32(type.bits - 1)).astype(type.unsigned)
        return np.asarray(np.where(by >= type.bits, zero, value << amount if left else value >> amount))

    def extract(a: Array, start: Array, length: Array) -> Array:
        start, length = start & np.uint32(255), length & np.uint32(255)
        kept = shifted(a, start, left=False) & mask(length)
        if not type.signed:
            return np.asarray(kept)
        top = np.minimum(start + length - np.uint32(1), np.uint32(type.bits - 1)).astype(type.unsigned)
        negative = (length > 0) & ((a >> top & one) == one)
        inside = np.minimum(length, np.where(start >= type.bits, np.uint32(0), np.uint32(type.bits) - start))
        return np.where(negative, kept | ~mask(inside), kept)

    def insert(a: Array, b: Array, start: Array, length: Array) -> Array:
        start, length = start & np.uint32(255), length & np.uint32(255)
        place = shifted(mask(length), start, left=True)
        return (b & ~place) | (shifted(a, start, left=True) & place)

    if name == "bfe":
        return Rule(extract, (type, _U32, _U32), type, moved=1)
    return Rule(insert, (type, type, _U32, _U32), type, moved=2)


def counted(name: str, modifiers: list[str]) -> Rule | None:
    """Return the rule of ``popc``, ``clz`` and ``brev``, or None."""
    type = _one(modifiers, "b32", "b64")
    if type is None:
        return None

    def reversed(a: Array) -> Array:
        found = type.unsigned(0)
        for i in range(type.bits):
            found = found | ((a >> type.unsigned(i) & type.unsigned(1)) << type.unsigned(type.bits - 1 - i))
        return np.asarray(found)

    def ones(a: Array) -> Array:
        return np.bitwise_count(a).astype(np.uint32)

    def zeros(a: Array) -> Array:
        for by in (1, 2, 4, 8, 16, 32)[: type.bits.bit_length() - 1]:
            a = a | (a >> type.unsigned(by))
        return np.uint32(type.bits) - ones(a)

    if name == "brev":
        return Rule(reversed, (type,), type, moved=1)
    return Rule(ones if name == "popc" else zeros, (type,), _U32)


def permute(modifiers: list[str]) -> Rule | None:
    """Return the rule of ``prmt``, which picks bytes of two registers, or None."""
    mode = modifiers[1] if len(modifiers) == 2 else ""
    if modifiers[:1] != ["b32"] or mode not in ("", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16") or len(modifiers) > 2:
        return None

    def result(a: Array, b: Array, control: Array) -> Array:
        both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
        found: Any = np.uint32(0)
        for place in range(4):
            pick = (
                control >> np.uint32(4 * place) & np.uint32(15)
                if not mode
                else _picked(mode, control & np.uint32(3), place)
            )
            byte = (both >> ((pick & np.uint32(7)).astype(np.uint64) * np.uint64(8))).astype(np.uint32) & np.uint32(255)
            if not mode:
                sign = np.where(byte >= 128, np.uint32(255), np.uint32(0))
                byte = np.where(pick >= 8, sign, byte)
            found = found | byte << np.uint32(8 * place)
        return np.asarray(found)

    return Rule(result, (_B32, _B32, _U32), _B32, moved=2)


def _picked(mode: str, control: Array, place: int) -> Array:
    """Return which byte of eight stands at a place."""
    at = np.uint32(place)
    if mode == "f4e":
        return control + at
    if mode == "b4e":
        return (control - at) & np.uint32(7)
    if mode == "rc8":
        return control
    if mode == "rc16":
        return (control & np.uint32(1)) * np.uint32(2) + (at & np.uint32(1))
    return np.maximum(control, at) if mode == "ecl" else np.minimum(control, at)


def select(modifiers: list[str]) -> Rule | None:
    """Return the rule of ``selp``, or None."""
    type = TYPES.get(modifiers[0]) if len(modifiers) == 1 else None
    if type is None or type.kind not in ("b", "u", "s", "f") or type.bits < 16 or type.name == "f16":
        return None
    return Rule(lambda a, b, chosen: np.asarray(np.where(chosen, a, b)), (type, type, PRED), type, moved=2)
