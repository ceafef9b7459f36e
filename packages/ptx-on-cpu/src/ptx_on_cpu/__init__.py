"""Compiled PTX on any CPU: the program that a GPU is given, instruction by instruction, for tests."""

from .counters import Counters, Traffic
from .faults import (
    DeadlockFault,
    Fault,
    MemoryFault,
    ParseError,
    Place,
    RaceFault,
    UndefinedFault,
    UnknownInstruction,
)
from .memory import Buffer
from .module import Function, Module

__all__ = [
    "Buffer",
    "Counters",
    "DeadlockFault",
    "Fault",
    "Function",
    "MemoryFault",
    "Module",
    "ParseError",
    "Place",
    "RaceFault",
    "Traffic",
    "UndefinedFault",
    "UnknownInstruction",
]
