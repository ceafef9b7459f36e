"""Instructions of one thread to steps: what to do with the registers of a group of threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import arithmetic
from .batch import Batch, Threads
from .faults import UnknownInstruction
from .operands import Operand, Pair, Vector
from .parse import Instruction
from .registers import Reader, Registers
from .types import PRED, TYPES, UNSIGNED, Array, Rule

#: What an instruction does for a group of threads.
Step = Callable[[Batch, Threads], None]

_COMBINED = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def lower(instruction: Instruction, registers: Registers) -> Step | None:
    """Return the step of an arithmetic instruction, or None if it is none."""
    name = instruction.opcode.split(".")[0]
    if name == "setp":
        return _comparison(instruction, registers)
    if name == "mov" and any(isinstance(each, Vector) for each in instruction.operands):
        return _packing(instruction, registers)
    rule = arithmetic.rule(instruction.opcode)
    return None if rule is None else _computed(instruction, rule, registers)


def expect(instruction: Instruction, count: int) -> tuple[Operand, ...]:
    """Return the operands of an instruction.

    Raises:
        UnknownInstruction: there are more or fewer.
    """
    if len(instruction.operands) != count:
        raise UnknownInstruction(
            f"{instruction.place}: {instruction.opcode} with {len(instruction.operands)} operands is not known"
        )
    return instruction.operands


def _computed(instruction: Instruction, rule: Rule, registers: Registers) -> Step:
    place, wide = instruction.place, instruction.opcode.startswith("cvt.")
    target, *operands = expect(instruction, 1 + len(rule.operands))
    typed = list(zip(operands, rule.operands, strict=True))
    reads = [registers.reader(operand, type, place, wider=wide) for operand, type in typed]
    shadows = [registers.shadow(operand, type, place) for operand, type in typed]
    write = registers.writer(target, rule.result, place, wider=wide)

    def careful(batch: Batch, threads: Threads) -> None:
        values = [read(batch, threads) for read in reads]
        undefined = [shadow(batch, threads) if shadow else None for shadow in shadows]
        write(batch, threads, rule.function(*values), shadow_of(rule, values, undefined))

    return careful if any(shadows) or rule.makes_undefined else _plain(reads, rule, write)


def _plain(reads: list[Reader], rule: Rule, write: Callable[..., None]) -> Step:
    def step(batch: Batch, threads: Threads) -> None:
        write(batch, threads, rule.function(*[read(batch, threads) for read in reads]), None)

    return step


def shadow_of(rule: Rule, values: list[Array], undefined: list[Array | None]) -> Array | None:
    """Return the undefined bits of a result, or None if all are defined."""
    if all(each is None for each in undefined) and not rule.makes_undefined:
        return None
    shadows = [np.zeros_like(value) if each is None else each for value, each in zip(values, undefined, strict=True)]
    if rule.shadow is not None:
        return rule.shadow(values, shadows)
    lost = np.asarray(False)
    for each in shadows[rule.moved :]:
        lost = lost | (each != 0)
    everything = np.asarray(True) if rule.result is PRED else rule.result.unsigned(2**rule.result.bits - 1)
    kept = rule.function(*shadows[: rule.moved], *values[rule.moved :]) if rule.moved else rule.result.unsigned(0)
    return np.where(lost, everything, kept)


def _comparison(instruction: Instruction, registers: Registers) -> Step | None:
    found = arithmetic.comparison(instruction.opcode)
    if found is None:
        return None
    rule, combined = found
    place = instruction.place
    target, *operands = expect(instruction, 4 if combined else 3)
    types = (*rule.operands, PRED)[: len(operands)]
    reads = [registers.reader(operand, type, place) for operand, type in zip(operands, types, strict=True)]
    shadows = [registers.shadow(operand, type, place) for operand, type in zip(operands, types, strict=True)]
    pair = target if isinstance(target, Pair) else None
    write = registers.writer(pair.first if pair else target, PRED, place)
    write_opposite = registers.writer(pair.second, PRED, place) if pair else None

    def step(batch: Batch, threads: Threads) -> None:
        values = [read(batch, threads) for read in reads]
        compared, opposite = rule.function(*values[:2]), None
        undefined = None
        if any(shadows):
            found = [shadow(batch, threads) if shadow else None for shadow in shadows]
            if any(each is not None for each in found):
                undefined = np.logical_or.reduce(
                    np.broadcast_arrays(*[each != 0 for each in found if each is not None])
                )
        if write_opposite:
            opposite = ~compared
            if combined:
                opposite = _COMBINED[combined](opposite, values[2])
            write_opposite(batch, threads, opposite, undefined)
        write(batch, threads, _COMBINED[combined](compared, values[2]) if combined else compared, undefined)

    return step


def _packing(instruction: Instruction, registers: Registers) -> Step | None:
    """Return the step of a ``mov`` between one register and several that are its parts, the lowest first."""
    target, source = expect(instruction, 2)
    whole = TYPES.get(instruction.opcode.removeprefix("mov."))
    parts = target if isinstance(target, Vector) else source
    if (
        whole is None
        or whole.kind != "b"
        or not isinstance(parts, Vector)
        or whole.bits // len(parts.items) not in (16, 32)
    ):
        return None
    part, place = TYPES[f"b{whole.bits // len(parts.items)}"], instruction.place
    if isinstance(target, Vector):
        read, shadow = registers.reader(source, whole, place), registers.shadow(source, whole, place)
        writes = [registers.writer(item, part, place) for item in target.items]

        def unpack(batch: Batch, threads: Threads) -> None:
            value, undefined = read(batch, threads), shadow(batch, threads) if shadow else None
            for i, write in enumerate(writes):
                by = whole.unsigned(i * part.bits)
                bits = None if undefined is None else (undefined >> by).astype(part.unsigned)
                write(batch, threads, (value >> by).astype(part.unsigned), bits)

        return unpack
    assert isinstance(source, Vector)
    reads = [registers.reader(item, part, place) for item in source.items]
    shadows = [registers.shadow(item, part, place) for item in source.items]
    write = registers.writer(target, whole, place)

    def pack(batch: Batch, threads: Threads) -> None:
        undefined = [shadow(batch, threads) if shadow else None for shadow in shadows]
        bits = None if all(each is None for each in undefined) else _joined(undefined, whole.bits, part.bits)
        write(batch, threads, _joined([read(batch, threads) for read in reads], whole.bits, part.bits), bits)

    return pack


def _joined(values: list[Array] | list[Array | None], bits: int, part: int) -> Array:
    found = np.asarray(0, dtype=UNSIGNED[bits])
    for i, value in enumerate(values):
        if value is not None:
            found = found | value.astype(UNSIGNED[bits]) << UNSIGNED[bits](i * part)
    return found
