"""What the threads of a warp do together: shuffles, reductions, votes, layout changes by ``ldmatrix``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .atomics import REDUCTIONS
from .batch import WARP, Batch, Threads
from .faults import UndefinedFault
from .lowering import Step, expect
from .operands import Address, Number, Operand, Pair, Vector
from .parse import Instruction
from .registers import Reader, Registers
from .types import PRED, TYPES, Array

_U32, _B32 = TYPES["u32"], TYPES["b32"]


class WarpStep(NamedTuple):
    """An instruction of whole warps.

    Attributes:
        mask: reads the lanes that take part.
        step: runs once all of them are there.
    """

    mask: Reader
    step: Step


def lower(instruction: Instruction, registers: Registers) -> WarpStep | None:
    """Return the step of an instruction of warps, or None if it is none."""
    name, *modifiers = instruction.opcode.split(".")
    if instruction.opcode == "bar.warp.sync":
        return WarpStep(_mask(instruction, registers, expect(instruction, 1)[0]), _synchronise)
    if modifiers[:1] != ["sync"]:
        return None
    known = {"shfl": _shuffle, "redux": _reduction, "vote": _vote, "ldmatrix": _matrices}
    return known[name](instruction, registers, modifiers[1:]) if name in known else None


def _mask(instruction: Instruction, registers: Registers, operand: Operand) -> Reader:
    return registers.defined(operand, _U32, instruction.place, "the mask")


def _synchronise(batch: Batch, threads: Threads) -> None:
    batch.warp_epoch[np.unique(batch.numbers(threads) // WARP)] += 1


def _shuffle(instruction: Instruction, registers: Registers, modifiers: list[str]) -> WarpStep | None:
    if len(modifiers) != 2 or modifiers[0] not in ("up", "down", "bfly", "idx") or modifiers[1] != "b32":
        return None
    mode, place = modifiers[0], instruction.place
    target, source, *controls, mask = expect(instruction, 5)
    pair = target if isinstance(target, Pair) else None
    write = registers.writer(pair.first if pair else target, _B32, place)
    write_inside = registers.writer(pair.second, PRED, place) if pair else None
    read, shadow = registers.reader(source, _B32, place), registers.shadow(source, _B32, place)
    read_by, read_clamp = (registers.defined(each, _U32, place, "the lane") for each in controls)

    def step(batch: Batch, threads: Threads) -> None:
        numbers = batch.numbers(threads)
        lane = numbers % WARP
        by = (read_by(batch, threads) & np.uint32(31)).astype(np.int64)
        clamp = read_clamp(batch, threads)
        upper, segment = (
            (clamp & np.uint32(31)).astype(np.int64),
            (clamp >> np.uint32(8) & np.uint32(31)).astype(np.int64),
        )
        last = (lane & segment) | (upper & ~segment & 31)
        first = lane & segment
        wanted = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first | (by & ~segment & 31)}[mode]
        inside = wanted >= last if mode == "up" else wanted <= last
        origin = numbers - lane + np.where(inside, wanted, lane)
        present = np.zeros(batch.count, dtype=bool)
        present[threads] = True
        if not present[origin].all():
            at = int(numbers[~present[origin]][0]) % WARP
            raise UndefinedFault(place, f"lane {at} reads a lane that does not take part")
        everyone = np.zeros(batch.count, dtype=np.uint32)
        everyone[threads] = read(batch, threads)
        undefined = None
        if shadow and (found := shadow(batch, threads)) is not None:
            bits = np.zeros(batch.count, dtype=np.uint32)
            bits[threads] = found
            undefined = bits[origin]
        write(batch, threads, everyone[origin], undefined)
        if write_inside:
            write_inside(batch, threads, inside, None)

    return WarpStep(_mask(instruction, registers, mask), step)


def _reduction(instruction: Instruction, registers: Registers, modifiers: list[str]) -> WarpStep | None:
    if len(modifiers) != 2:
        return None
    operation, of = modifiers
    if operation not in REDUCTIONS or of not in (("u32", "s32") if operation in ("add", "min", "max") else ("b32",)):
        return None
    type = TYPES[of]
    target, source, mask = expect(instruction, 3)
    read = registers.defined(source, type, instruction.place, "the operand of a reduction")
    read_mask = _mask(instruction, registers, mask)
    write = registers.writer(target, type, instruction.place)

    def step(batch: Batch, threads: Threads) -> None:
        values = read(batch, threads).view(type.numbers)
        found = _by_warp(REDUCTIONS[operation], values, read_mask(batch, threads), batch.numbers(threads))
        write(batch, threads, np.ascontiguousarray(found.astype(type.numbers)).view(type.unsigned), None)

    return WarpStep(read_mask, step)


def _by_warp(function: Any, values: Array, masks: Array, numbers: Array) -> Array:
    """Return for each thread what a function makes of the values of all threads with its warp and mask."""
    warp = (numbers // WARP).astype(np.uint64)
    key = warp << np.uint64(32) | masks
    order = np.argsort(key, kind="stable")
    sorted_key = key[order]
    first = np.flatnonzero(np.concatenate(([True], sorted_key[1:] != sorted_key[:-1])))
    found = function.reduceat(np.broadcast_to(values, key.shape)[order], first)
    spread = np.repeat(found, np.diff(np.append(first, len(order))))
    result = np.empty_like(spread)
    result[order] = spread
    return result


def _vote(instruction: Instruction, registers: Registers, modifiers: list[str]) -> WarpStep | None:
    if modifiers not in (["any", "pred"], ["all", "pred"], ["uni", "pred"], ["ballot", "b32"]):
        return None
    target, source, mask = expect(instruction, 3)
    type = TYPES[modifiers[1]]
    read = registers.defined(source, PRED, instruction.place, "the predicate")
    read_mask = _mask(instruction, registers, mask)
    write = registers.writer(target, type, instruction.place)

    def step(batch: Batch, threads: Threads) -> None:
        numbers, masks = batch.numbers(threads), read_mask(batch, threads)
        chosen = np.broadcast_to(read(batch, threads), numbers.shape)
        one = np.uint32(1) << (numbers % WARP).astype(np.uint32)
        yes, no = (
            _by_warp(np.bitwise_or, np.where(each, one, np.uint32(0)), masks, numbers) for each in (chosen, ~chosen)
        )
        results = {"any": yes != 0, "all": no == 0, "uni": (yes == 0) | (no == 0), "ballot": yes}
        write(batch, threads, results[modifiers[0]], None)

    return WarpStep(read_mask, step)


def _matrices(instruction: Instruction, registers: Registers, modifiers: list[str]) -> WarpStep | None:
    """Return the step of ``ldmatrix``: lanes 8i to 8i+7 give the addresses of the rows of matrix i, 16 bytes each."""
    number = modifiers[2] if len(modifiers) > 2 else ""
    kept = [each for each in modifiers if each != "trans"]
    if number not in ("x1", "x2", "x4") or kept != ["aligned", "m8n8", number, "shared", "b16"]:
        return None
    place, trans = instruction.place, "trans" in modifiers
    target, source = expect(instruction, 2)
    count = int(number[1])
    if not isinstance(target, Vector) or not isinstance(source, Address) or len(target.items) != count:
        return None
    writes = [registers.writer(item, _B32, place) for item in target.items]
    wide = not isinstance(source.base, Number) and getattr(source.base, "name", "") in registers.types
    type = registers.types[source.base.name] if wide else TYPES["b64"]  # type: ignore[union-attr]
    read = registers.defined(source.base, type, place, "the address")

    def step(batch: Batch, threads: Threads) -> None:
        numbers = batch.numbers(threads)
        at = np.zeros(batch.count, dtype=np.uint64)
        at[threads] = read(batch, threads).astype(np.uint64) + np.uint64(source.offset & (2**64 - 1))
        givers = numbers[numbers % WARP < 8 * count]
        batch.shared.check(at[givers], 16, place)
        batch.counters.shared_access(batch, givers, at[givers], 16, place)
        lane = numbers % WARP
        for i, write in enumerate(writes):
            parts = []
            for j in range(2):
                row, column = (2 * (lane % 4) + j, lane // 4) if trans else (lane // 4, 2 * (lane % 4) + j)
                address = at[numbers - lane + 8 * i + row] + (2 * column).astype(np.uint64)
                batch.accesses.record_shared(batch, threads, address, 2, place, write=False)
                parts.append(batch.shared.load(batch.block_of[threads], address, 16))
            values, undefined = (
                low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)
                for low, high in zip(*parts, strict=True)
            )
            write(batch, threads, values, undefined)

    return WarpStep(lambda batch, threads: np.asarray(2**32 - 1, dtype=np.uint32), step)
