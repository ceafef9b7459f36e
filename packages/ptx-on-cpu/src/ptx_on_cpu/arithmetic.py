"""The instructions that need nothing but registers of their own thread, by opcode."""

from __future__ import annotations

from . import bitwise, floats, integers
from .conversions import convert
from .types import PRED, TYPES, Rule


def rule(opcode: str) -> Rule | None:
    """Return the rule of an opcode with all its modifiers, or None if it is not known."""
    name, *modifiers = opcode.split(".")
    if not modifiers:
        return None
    if name in ("add", "sub", "div", "sqrt", "rcp", "fma", "mul"):
        found = floats.arithmetic(name, modifiers)
        if found is None and name in ("add", "sub", "div"):
            found = integers.arithmetic(name, modifiers)
        return integers.product(name, modifiers) if found is None and name == "mul" else found
    if name in ("min", "max"):
        return floats.extreme(name, modifiers) or integers.arithmetic(name, modifiers)
    if name in ("abs", "neg", "copysign"):
        found = floats.sign(name, modifiers)
        return integers.arithmetic(name, modifiers) if found is None and name != "copysign" else found
    if name in ("and", "or", "xor", "not", "cnot"):
        return bitwise.logic(name, modifiers)
    if name in ("bfe", "bfi"):
        return bitwise.field(name, modifiers)
    if name in ("popc", "clz", "brev"):
        return bitwise.counted(name, modifiers)
    if name in ("shl", "shr"):
        return bitwise.shift(name, modifiers)
    if name == "mad":
        return integers.product(name, modifiers)
    if name == "rem":
        return integers.arithmetic(name, modifiers)
    others = {
        "shf": bitwise.funnel,
        "lop3": bitwise.lop3,
        "prmt": bitwise.permute,
        "selp": bitwise.select,
        "cvt": convert,
    }
    return others[name](modifiers) if name in others else _moved(name, modifiers)


def _moved(name: str, modifiers: list[str]) -> Rule | None:
    """Return the rule of ``mov`` and of ``cvta`` to or from global memory, where both addresses are the same."""
    if name == "cvta" and modifiers in (["to", "global", "u64"], ["global", "u64"]):
        return Rule(lambda a: a, (TYPES["u64"],), TYPES["u64"], moved=1)
    if name != "mov" or len(modifiers) != 1:
        return None
    type = TYPES.get(modifiers[0])
    if type is None or type.bits == 8 or type.kind in ("x2", "bf") or type.name == "f16":
        return None
    return Rule(lambda a: a, (type,), type, moved=1)


def comparison(opcode: str) -> tuple[Rule, str] | None:
    """Return the rule of a ``setp`` and the operator that combines it with a predicate, or None if it is not known."""
    name, *modifiers = opcode.split(".")
    if name != "setp" or len(modifiers) not in (2, 3):
        return None
    operator, *combined, of = modifiers
    if combined not in ([], ["and"], ["or"], ["xor"]):
        return None
    found = floats.comparison(operator, of) or integers.comparison(operator, of)
    assert found is None or found.result is PRED
    return (found, "".join(combined)) if found else None
