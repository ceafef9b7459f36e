"""``ld``, ``st``, ``atom`` and ``red`` to steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .atomics import combine, known
from .batch import Batch, Threads
from .lowering import Step, expect
from .operands import Address, Name, Operand, Register, Vector
from .parse import Instruction
from .registers import Reader, Registers, require_defined
from .types import TYPES, Array, Type

#: Modifiers that say how to cache and change no result.
_CACHING = frozenset(["weak", "ca", "cg", "cs", "lu", "cv", "nc", "wb", "wt"])

_SPACES = ("param", "global", "shared", "const")


def lower(instruction: Instruction, registers: Registers, offsets: dict[str, int]) -> Step | None:
    """Return the step of an access to memory, or None if it is none; ``offsets`` are those of parameters."""
    name, *modifiers = instruction.opcode.replace(".shared::cta", ".shared").split(".")
    if name in ("atom", "red"):
        return _atomic(instruction, registers, name, modifiers)
    if name not in ("ld", "st") or not modifiers or modifiers[0] not in _SPACES:
        return None
    space, *middle, of = modifiers
    lanes = 1
    if middle and middle[-1] in ("v2", "v4"):
        lanes = int(middle.pop()[1])
    if any(each not in _CACHING and not each.startswith(("L1::", "L2::")) for each in middle):
        return None
    type = TYPES.get(of)
    if type is None or type.kind in ("x2", "bf", "pred") or type.name == "f16" or type.bytes * lanes > 16:
        return None
    if name == "ld":
        return (
            _parameter(instruction, registers, type, offsets)
            if space == "param"
            else _load(instruction, registers, space, type, lanes)
        )
    return None if space in ("param", "const") else _store(instruction, registers, space, type, lanes)


def _address(instruction: Instruction, registers: Registers, operand: Operand, space: str) -> Reader:
    """Return what reads the addresses of an access, as 64-bit numbers."""
    place = instruction.place
    assert isinstance(operand, Address)
    wide = TYPES["u64"]
    if (
        isinstance(operand.base, Register)
        and space == "shared"
        and registers.types.get(operand.base.name) == TYPES["b32"]
    ):
        wide = TYPES["u32"]
    read = registers.defined(operand.base, wide, place, "the address")
    offset = np.uint64(operand.offset & (2**64 - 1))

    def addresses(batch: Batch, threads: Threads) -> Array:
        found = read(batch, threads).astype(np.uint64) + offset
        return found if found.ndim else np.full(batch.size(threads), found)

    return addresses


def _items(operand: Operand, lanes: int) -> tuple[Operand, ...]:
    items = operand.items if isinstance(operand, Vector) else (operand,)
    assert len(items) == lanes, "a vector of another length than its instruction"
    return items


def _parameter(instruction: Instruction, registers: Registers, type: Type, offsets: dict[str, int]) -> Step | None:
    target, source = expect(instruction, 2)
    if not isinstance(source, Address) or not isinstance(source.base, Name) or source.base.name not in offsets:
        return None
    at = offsets[source.base.name] + source.offset
    write = registers.writer(target, type, instruction.place, wider=True)

    def step(batch: Batch, threads: Threads) -> None:
        write(batch, threads, np.frombuffer(batch.parameters, type.unsigned, 1, at)[0], None)

    return step


def _load(instruction: Instruction, registers: Registers, space: str, type: Type, lanes: int) -> Step:
    target, source = expect(instruction, 2)
    place, size = instruction.place, type.bytes * lanes
    addresses = _address(instruction, registers, source, space)
    writes = [registers.writer(item, type, place, wider=True) for item in _items(target, lanes)]

    def from_buffers(batch: Batch, threads: Threads) -> None:
        at = addresses(batch, threads)
        batch.memory.check(at, size, place)
        batch.counters.global_access(batch, threads, at, size, place)
        if space == "global":
            batch.accesses.record(batch, threads, at, size, place, write=False)
        for i, write in enumerate(writes):
            write(batch, threads, batch.memory.load(at + np.uint64(i * type.bytes), type.bits), None)

    def from_shared(batch: Batch, threads: Threads) -> None:
        at = addresses(batch, threads)
        batch.shared.check(at, size, place)
        batch.counters.shared_access(batch, threads, at, size, place)
        batch.accesses.record_shared(batch, threads, at, size, place, write=False)
        for i, write in enumerate(writes):
            found = batch.shared.load(batch.block_of[threads], at + np.uint64(i * type.bytes), type.bits)
            write(batch, threads, *found)

    return from_shared if space == "shared" else from_buffers


def _store(instruction: Instruction, registers: Registers, space: str, type: Type, lanes: int) -> Step:
    target, source = expect(instruction, 2)
    place, size = instruction.place, type.bytes * lanes
    addresses = _address(instruction, registers, target, space)
    items = _items(source, lanes)
    reads = [registers.reader(item, type, place, wider=True) for item in items]
    shadows = [registers.shadow(item, type, place) for item in items]

    def to_buffers(batch: Batch, threads: Threads) -> None:
        at = addresses(batch, threads)
        batch.memory.check(at, size, place)
        batch.counters.global_access(batch, threads, at, size, place)
        batch.accesses.record(batch, threads, at, size, place, write=True)
        for i, (read, shadow) in enumerate(zip(reads, shadows, strict=True)):
            if shadow:
                require_defined(shadow(batch, threads), place, "the value that is stored")
            batch.memory.store(at + np.uint64(i * type.bytes), type.bits, read(batch, threads))

    def to_shared(batch: Batch, threads: Threads) -> None:
        at = addresses(batch, threads)
        batch.shared.check(at, size, place)
        batch.counters.shared_access(batch, threads, at, size, place)
        values = [read(batch, threads) for read in reads]
        batch.accesses.record_shared(batch, threads, at, size, place, write=True, values=values)
        for i, (value, shadow) in enumerate(zip(values, shadows, strict=True)):
            undefined = shadow(batch, threads) if shadow else None
            both = (value, type.unsigned(0) if undefined is None else undefined)
            batch.shared.store(batch.block_of[threads], at + np.uint64(i * type.bytes), type.bits, *both)

    return to_shared if space == "shared" else to_buffers


def _atomic(instruction: Instruction, registers: Registers, name: str, modifiers: list[str]) -> Step | None:
    """Return the step of an atomic; threads take their turns in an order that the seed decides."""
    settings = {"relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys", "global", "shared"}
    rest = [each for each in modifiers if each not in settings]
    spaces = [each for each in modifiers if each in ("global", "shared")]
    if len(rest) != 2 or len(spaces) != 1 or not known(*rest) or (name == "red" and rest[0] in ("exch", "cas")):
        return None
    operation, type, place = rest[0], TYPES[rest[1]], instruction.place
    count = 2 if operation == "cas" else 1
    operands = expect(instruction, count + (2 if name == "atom" else 1))
    addresses = _address(instruction, registers, operands[-count - 1], spaces[0])
    reads = [registers.defined(each, type, place, "the operand of an atomic") for each in operands[-count:]]
    write = registers.writer(operands[0], type, place) if name == "atom" else None

    def step(batch: Batch, threads: Threads) -> None:
        at = addresses(batch, threads)
        values = [np.broadcast_to(read(batch, threads), at.shape) for read in reads]
        load, store = _memory(batch, threads, at, type, spaces[0], instruction)
        before = combine(operation, type, at, values, load, store, batch.random)
        if write:
            write(batch, threads, before, None)

    return step


def _memory(
    batch: Batch, threads: Threads, at: Array, type: Type, space: str, instruction: Instruction
) -> tuple[Callable[[Array], Array], Callable[[Array, Array], None]]:
    """Check and count an atomic; return what loads and stores at some of its addresses, by their numbers."""
    place = instruction.place
    if space == "global":
        batch.memory.check(at, type.bytes, place)
        batch.counters.global_access(batch, threads, at, type.bytes, place)
        batch.accesses.record(batch, threads, at, type.bytes, place, write=True, atomic=True)
        return (lambda i: batch.memory.load(at[i], type.bits)), (
            lambda i, values: batch.memory.store(at[i], type.bits, values)
        )
    batch.shared.check(at, type.bytes, place)
    batch.counters.shared_access(batch, threads, at, type.bytes, place)
    batch.accesses.record_shared(batch, threads, at, type.bytes, place, write=True, atomic=True)
    blocks = batch.block_of[threads]

    def load(i: Array) -> Array:
        found, undefined = batch.shared.load(blocks[i], at[i], type.bits)
        require_defined(undefined, place, "the shared memory of an atomic")
        return found

    def store(i: Array, values: Array) -> None:
        batch.shared.store(blocks[i], at[i], type.bits, values, type.unsigned(0))

    return load, store
