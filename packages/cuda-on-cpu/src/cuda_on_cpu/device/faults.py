"""Faults of a program that a GPU would answer with wrong bits, an error far away, or a hang."""

from __future__ import annotations


class DeviceFault(RuntimeError):
    """A use of the device that CUDA forbids, or does not define."""


class UseOfFreedMemory(DeviceFault):
    """Work ran after the memory that it uses was given back in the order of another stream."""


class CaptureViolation(DeviceFault):
    """Something that is not permitted while a graph is captured."""


class Deadlock(DeviceFault):
    """The host waits for work that can never run."""
