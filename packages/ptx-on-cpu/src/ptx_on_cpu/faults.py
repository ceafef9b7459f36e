"""Errors: a text that is not understood, and what a kernel does that its source does not allow."""

from __future__ import annotations

from dataclasses import dataclass


class UnknownInstruction(ValueError):
    """An opcode, a modifier or a directive that this package does not execute."""


class ParseError(ValueError):
    """A text that is not PTX as compilers write it."""


@dataclass(frozen=True)
class Place:
    """An instruction's place.

    Attributes:
        kernel: name of the kernel.
        line: line of the PTX text, from 1.
        text: the instruction.
        source: file and line of the source, as ``kernels.cu:17``; empty without ``.loc``.
    """

    kernel: str
    line: int
    text: str
    source: str

    def __str__(self) -> str:
        """Return the place as errors write it."""
        source = f" ({self.source})" if self.source else ""
        return f"{self.kernel}, PTX line {self.line}{source}: {self.text}"


class Fault(RuntimeError):
    """An error of a kernel while it runs.

    Attributes:
        place: the instruction.
        reason: the rule that it breaks.
    """

    def __init__(self, place: Place, reason: str) -> None:
        super().__init__(f"{place}\n  {reason}")
        self.place, self.reason = place, reason


class MemoryFault(Fault):
    """An access outside all buffers, or one that is not aligned."""


class UndefinedFault(Fault):
    """An undefined value that is stored, or used as an address, a predicate or an operand of a barrier."""


class RaceFault(Fault):
    """Two threads access the same address without a barrier between them, and at least one writes."""


class DeadlockFault(Fault):
    """A barrier or a warp operation that not all of its threads reach."""
