"""Access to operands while a kernel runs: values, undefined bits, results."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .batch import Batch, Threads, special_known
from .faults import Place, UndefinedFault, UnknownInstruction
from .operands import Name, Negated, Number, Operand, Register
from .types import PRED, Array, Type

#: Values of an operand for a group of threads.
Reader = Callable[[Batch, Threads], Array]

#: The undefined bits of an operand, or None if there are none.
Shadow = Callable[[Batch, Threads], "Array | None"]

#: What gives a register its values, and its undefined bits.
Writer = Callable[[Batch, Threads, Array, "Array | None"], None]


class Registers:
    """The registers of a kernel by number.

    Args:
        types: of each, by name.
        undefined: those whose undefined bits have to be kept.
        addresses: of variables, by name.
    """

    def __init__(self, types: dict[str, Type], undefined: set[str], addresses: dict[str, int]) -> None:
        self.types, self._undefined, self._addresses = types, undefined, addresses
        self.numbers = {name: i for i, name in enumerate(types)}

    def number(self, operand: Operand, place: Place) -> int:
        """Return the number of a register.

        Raises:
            UnknownInstruction: the operand is none, or was not declared.
        """
        if not isinstance(operand, Register) or operand.name not in self.numbers:
            raise UnknownInstruction(f"{place}: a register that was declared is expected")
        return self.numbers[operand.name]

    def reader(self, operand: Operand, type: Type, place: Place, wider: bool = False) -> Reader:
        """Return what reads an operand as bits of ``type``; from a wider register, where allowed, the lowest."""
        if isinstance(operand, Number) or (isinstance(operand, Name) and operand.name in self._addresses):
            value = operand.value if isinstance(operand, Number) else self._addresses[operand.name]
            constant = np.asarray(bool(value) if type is PRED else value & (2**type.bits - 1), dtype=type.unsigned)
            return lambda batch, threads: constant
        if isinstance(operand, Negated):
            number = self.number(operand.register, place)
            return lambda batch, threads: ~batch.register(number)[threads]
        if isinstance(operand, Register) and special_known(operand.name):
            return _special(operand.name, type)
        number = self.number(operand, place)
        held = self.types[operand.name]  # type: ignore[union-attr]
        if held.bits == type.bits and (held is PRED) == (type is PRED):
            return lambda batch, threads: batch.register(number)[threads]
        if held.bits < type.bits or not wider or PRED in (held, type):
            raise UnknownInstruction(f"{place}: a register of {held.name} where {type.name} is expected")
        return lambda batch, threads: batch.register(number)[threads].astype(type.unsigned)

    def shadow(self, operand: Operand, type: Type, place: Place) -> Shadow | None:
        """Return what reads the undefined bits of an operand, or None if it cannot have any."""
        register = operand.register if isinstance(operand, Negated) else operand
        if not isinstance(register, Register) or register.name not in self._undefined:
            return None
        number = self.number(register, place)
        narrow = self.types[register.name].bits > type.bits

        def read(batch: Batch, threads: Threads) -> Array | None:
            found = batch.shadow(number, threads)
            return found.astype(type.unsigned) if narrow and found is not None else found

        return read

    def writer(self, operand: Operand, type: Type, place: Place, wider: bool = False) -> Writer:
        """Return what writes a register from values of ``type``; where allowed, extended to a wider register."""
        if operand == Name("_"):
            return lambda batch, threads, values, undefined: None
        number = self.number(operand, place)
        held = self.types[operand.name]  # type: ignore[union-attr]
        if held.bits < type.bits or (held.bits > type.bits and not wider) or (held is PRED) != (type is PRED):
            raise UnknownInstruction(f"{place}: a register of {held.name} for a result of {type.name}")
        keeps, extended = operand.name in self._undefined, held.bits > type.bits  # type: ignore[union-attr]

        def extend(values: Array) -> Array:
            if not extended:
                return values
            return (
                np.asarray(values.view(type.numbers).astype(f"i{held.bytes}")).view(held.unsigned)
                if type.signed
                else values
            )

        def write(batch: Batch, threads: Threads, values: Array, undefined: Array | None) -> None:
            batch.register(number)[threads] = extend(values)
            if keeps:
                batch.mark(number, threads, None if undefined is None else extend(undefined))

        return write

    def defined(self, operand: Operand, type: Type, place: Place, use: str) -> Reader:
        """Return a reader for a use that wants every bit defined.

        The reader raises:
            UndefinedFault: a bit is undefined.
        """
        read, shadow = self.reader(operand, type, place), self.shadow(operand, type, place)
        if shadow is None:
            return read

        def checked(batch: Batch, threads: Threads) -> Array:
            require_defined(shadow(batch, threads), place, use)
            return read(batch, threads)

        return checked


def require_defined(undefined: Array | None, place: Place, use: str) -> None:
    """Check that no bit is undefined.

    Raises:
        UndefinedFault: one is.
    """
    if undefined is not None and undefined.any():
        raise UndefinedFault(place, f"{use} is undefined: nothing was written there, or what depends on that")


def _special(name: str, type: Type) -> Reader:
    def read(batch: Batch, threads: Threads) -> Array:
        found = batch.special(name, threads)
        assert found is not None
        return found.astype(type.unsigned)

    return read
