"""CUDA devices for torch, made of the host's memory, for tests: unmodified code runs on them, in any legal order.

:func:`simulated_cuda` makes them. Tensors report ``cuda:0`` and have addresses of the host. What is done to them is
queued on streams, and runs later, in an order that a seed draws among those that CUDA permits.
"""

from .faults import CaptureViolation, Deadlock, DeviceFault, UseOfFreedMemory
from .guard import obstacle
from .simulate import Simulation, launch, simulated_cuda
from .views import View

__all__ = [
    "CaptureViolation",
    "Deadlock",
    "DeviceFault",
    "Simulation",
    "UseOfFreedMemory",
    "View",
    "launch",
    "obstacle",
    "simulated_cuda",
]
