"""A kernel made ready to run: every instruction known, every operand resolved."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from . import access, cooperation, lowering
from .batch import special_known
from .faults import Place, UnknownInstruction
from .lowering import Step
from .operands import Name, Number, Register
from .parse import Instruction, Kernel, Variable
from .registers import Reader, Registers
from .types import PRED, TYPES
from .undefined import leaders, perhaps_undefined, read_before_written, registers_of


class Kind(Enum):
    """What an instruction does with the group of threads that runs it."""

    PLAIN = "goes on"
    BRANCH = "parts it"
    EXIT = "ends it"
    WARP = "waits for lanes"
    BLOCK = "waits for the thread block"


@dataclass(frozen=True)
class Operation:
    """An instruction, ready.

    Attributes:
        kind: how threads go on.
        place: for errors.
        step: what it does, if anything.
        guard: the predicate without which nothing is done, if there is one.
        target: where a branch goes.
        mask: lanes that an instruction of a warp waits for, or the number of a barrier of the thread block.
    """

    kind: Kind
    place: Place
    step: Step | None = None
    guard: Reader | None = None
    target: int = -1
    mask: Reader | None = None


@dataclass(frozen=True)
class Program:
    """A kernel, ready to run.

    Attributes:
        kernel: its text, parsed.
        operations: one for each instruction.
        leaders: True where a basic block begins.
        registers: of the kernel.
        undefined: numbers of registers that may be read before they are written.
        offsets: of parameters, in bytes.
        parameter_bytes: size of all parameters.
        shared_bytes: static shared memory of a thread block.
    """

    kernel: Kernel
    operations: list[Operation]
    leaders: list[bool]
    registers: Registers
    undefined: list[int]
    offsets: dict[str, int]
    parameter_bytes: int
    shared_bytes: int


def layout(variables: list[Variable]) -> tuple[dict[str, int], int]:
    """Return the offset of each variable, one after another, and the size of all."""
    offsets, end = {}, 0
    for each in variables:
        end = -(-end // each.align) * each.align
        offsets[each.name] = end
        end += each.count * each.type.bytes
    return offsets, end


def prepare(kernel: Kernel, shared: list[Variable], addresses: dict[str, int]) -> Program:
    """Prepare a kernel.

    Args:
        kernel: parsed.
        shared: variables of the module in shared memory.
        addresses: of the module's variables in global and constant memory.

    Raises:
        UnknownInstruction: an opcode, a modifier or an operand is not known.
    """
    static = sorted([*shared, *kernel.shared], key=lambda each: each.count == 0)  # what a launch sizes comes last
    in_shared, shared_bytes = layout(static)
    offsets, parameter_bytes = layout(kernel.parameters)
    unwritten = read_before_written(kernel)
    registers = Registers(kernel.registers, perhaps_undefined(kernel, unwritten), {**addresses, **in_shared})
    operations = []
    for each in kernel.instructions:
        _check_registers(each, kernel)
        operations.append(_operation(each, kernel, registers, offsets))
    starts = set(leaders(kernel))
    return Program(
        kernel,
        operations,
        [i in starts for i in range(len(operations))],
        registers,
        [registers.numbers[name] for name in unwritten],
        offsets,
        parameter_bytes,
        shared_bytes,
    )


def _check_registers(instruction: Instruction, kernel: Kernel) -> None:
    for operand in instruction.operands:
        for name in registers_of(operand):
            if name not in kernel.registers and not special_known(name):
                raise UnknownInstruction(f"{instruction.place}: register {name} is not known")


def _operation(instruction: Instruction, kernel: Kernel, registers: Registers, offsets: dict[str, int]) -> Operation:
    place, opcode = instruction.place, instruction.opcode
    guard = None
    if instruction.guard:
        read = registers.defined(Register(instruction.guard), PRED, place, "the predicate")
        guard = (lambda batch, threads: ~read(batch, threads)) if instruction.negated else read
    if opcode in ("bra", "bra.uni"):
        target = instruction.operands[0]
        if not isinstance(target, Name) or target.name not in kernel.labels:
            raise UnknownInstruction(f"{place}: the label is not known")
        return Operation(Kind.BRANCH, place, guard=guard, target=kernel.labels[target.name])
    if opcode in ("ret", "exit", "ret.uni"):
        return Operation(Kind.EXIT, place, guard=guard)
    if opcode in ("bar.sync", "barrier.sync.aligned", "barrier.cta.sync.aligned"):
        if len(instruction.operands) != 1 or guard or not isinstance(instruction.operands[0], Number):
            raise UnknownInstruction(
                f"{place}: a barrier of some threads, with a predicate or in a register is not known"
            )
        number = registers.reader(instruction.operands[0], TYPES["u32"], place)
        return Operation(Kind.BLOCK, place, mask=number)
    if opcode.split(".")[0] in ("membar", "fence"):
        return Operation(Kind.PLAIN, place, step=lambda batch, threads: None)
    if warp := cooperation.lower(instruction, registers):
        if guard:
            raise UnknownInstruction(f"{place}: a predicate for an instruction of a warp is not known")
        return Operation(Kind.WARP, place, step=warp.step, mask=warp.mask)
    step = lowering.lower(instruction, registers) or access.lower(instruction, registers, offsets)
    if step is None:
        raise UnknownInstruction(f"{place}: {opcode} is not known")
    return Operation(Kind.PLAIN, place, step=step, guard=guard)
