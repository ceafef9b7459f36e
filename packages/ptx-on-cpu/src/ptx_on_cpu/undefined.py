"""Which registers may be undefined at some time: only of those are undefined bits kept while a kernel runs."""

from __future__ import annotations

from collections.abc import Iterator

from .operands import Address, Negated, Operand, Pair, Register, Vector
from .parse import Instruction, Kernel

#: Instructions without a result in their first operand.
_NO_RESULT = frozenset(["st", "red", "bra", "bar", "barrier", "ret", "exit", "trap", "membar", "fence"])

#: Instructions whose result may be undefined though their operands are not: shared memory is, division by 0 is.
_SOURCES = ("ld.shared", "ldmatrix", "div.s", "div.u", "rem.s", "rem.u", "atom.shared")


def registers_of(operand: Operand) -> Iterator[str]:
    """Yield the names of all registers in an operand."""
    if isinstance(operand, Register):
        yield operand.name
    elif isinstance(operand, Negated):
        yield operand.register.name
    elif isinstance(operand, Vector):
        for each in operand.items:
            yield from registers_of(each)
    elif isinstance(operand, Pair):
        yield from registers_of(operand.first)
        yield from registers_of(operand.second)
    elif isinstance(operand, Address):
        yield from registers_of(operand.base)


def written(instruction: Instruction) -> list[str]:
    """Return the registers that an instruction writes."""
    if instruction.opcode.split(".")[0] in _NO_RESULT or not instruction.operands:
        return []
    return list(registers_of(instruction.operands[0]))


def read(instruction: Instruction) -> list[str]:
    """Return the registers that an instruction reads."""
    first = 0 if instruction.opcode.split(".")[0] in _NO_RESULT else 1
    guard = [instruction.guard] if instruction.guard else []
    return guard + [name for operand in instruction.operands[first:] for name in registers_of(operand)]


def leaders(kernel: Kernel) -> list[int]:
    """Return where basic blocks begin: at labels, and after instructions that leave."""
    leaves = {
        i + 1 for i, each in enumerate(kernel.instructions) if each.opcode.split(".")[0] in ("bra", "ret", "exit")
    }
    return sorted({0, *kernel.labels.values(), *leaves} - {len(kernel.instructions)})


def perhaps_undefined(kernel: Kernel, unwritten: set[str]) -> set[str]:
    """Return the registers that may hold undefined bits, where those of ``unwritten`` may be read too early."""
    found = set(unwritten)
    effects = [(written(each), [*read(each)], each.opcode.startswith(_SOURCES)) for each in kernel.instructions]
    size = -1
    while size != len(found):
        size = len(found)
        for results, operands, source in effects:
            if results and (source or any(name in found for name in operands)):
                found.update(results)
    return found


def read_before_written(kernel: Kernel) -> set[str]:
    """Return the registers that some path reads before it writes them; sets of registers are the bits of integers."""
    bit = {name: 1 << i for i, name in enumerate(kernel.registers)}
    starts = leaders(kernel)
    ends = [*starts[1:], len(kernel.instructions)]
    place = {start: i for i, start in enumerate(starts)}
    everything = (1 << len(bit)) - 1
    arriving = [0] + [everything] * (len(starts) - 1)
    writes = [0] * len(starts)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        for each in kernel.instructions[start:end]:
            if not each.guard:
                for name in written(each):
                    writes[i] |= bit.get(name, 0)
    waiting = [0] if starts else []
    seen = set(waiting)
    while waiting:
        i = waiting.pop()
        leaving = arriving[i] | writes[i]
        for to in _next(kernel, starts, ends, i):
            if to not in place:
                continue
            j = place[to]
            kept = arriving[j] & leaving
            if kept != arriving[j] or j not in seen:
                arriving[j] = kept
                seen.add(j)
                waiting.append(j)
    found: set[str] = set()
    for i in seen:
        known = arriving[i]
        for each in kernel.instructions[starts[i] : ends[i]]:
            found.update(name for name in read(each) if name in bit and not known & bit[name])
            if not each.guard:
                for name in written(each):
                    known |= bit.get(name, 0)
    return found


def _next(kernel: Kernel, starts: list[int], ends: list[int], i: int) -> list[int]:
    """Return where execution may go on after a basic block."""
    last = kernel.instructions[ends[i] - 1] if ends[i] > starts[i] else None
    name = last.opcode.split(".")[0] if last else ""
    found = [ends[i]] if name not in ("bra", "ret", "exit") or (last and last.guard) else []
    if last and name == "bra":
        target = getattr(last.operands[0], "name", "") if last.operands else ""
        found += [kernel.labels[target]] if target in kernel.labels else []
    return found
