"""The kernels on a CPU, for tests: ``LIONBITS_CUPY_EMULATE``.

``1`` has ``cuda_on_cpu`` run the same source text, built by g++; ``ptx`` has ``ptx_on_cpu`` run what NVRTC makes of it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import struct
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lionbits_reference.spec import Plan, Slot
from lionbits_table import Extents, Table, order

from . import execute
from .source import FOLDER, KERNELS, numbers

if TYPE_CHECKING:
    from cuda_on_cpu import Module

ENVIRONMENT = "LIONBITS_CUPY_EMULATE"

#: Sanitizers of the compiler, separated by commas: ``address``, ``undefined``.
SANITIZE = "LIONBITS_CUPY_SANITIZE"

#: Thread blocks of a launch, at most: few, so that thread groups take several items; items have several tiles.
BLOCKS, TILES_PER_ITEM = 3, 2


_launching = threading.Lock()  # from the plan that is written to the kernel that reads it


def asked_for() -> bool:
    """True if CPU tensors are to be served."""
    return _setting() == "1" or bool(execute.architecture(_setting()))


def _setting() -> str:
    return os.environ.get(ENVIRONMENT, "")


def obstacle() -> str:
    """Return the reason why emulation is impossible, or an empty string."""
    if not asked_for():
        return f"CUDA kernels run on CUDA devices; for tests, on the CPU: set {ENVIRONMENT}=1"
    if execute.architecture(_setting()):
        missing = [name for name in ("ptx_on_cpu", "cupy") if importlib.util.find_spec(name) is None]
        needed = "ptx-on-cpu and NVRTC: pip install ./packages/ptx-on-cpu cupy-cuda13x (in a checkout of lionbits)"
        return f"{ENVIRONMENT}={_setting()} needs {needed}" if missing else ""
    if importlib.util.find_spec("cuda_on_cpu") is None:
        return f"{ENVIRONMENT}=1 needs cuda-on-cpu: pip install ./packages/cuda-on-cpu (in a checkout of lionbits)"
    import cuda_on_cpu

    return cuda_on_cpu.obstacle()


def extents(table: Table, plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]) -> Extents | None:
    """Return the memory that kernels may touch, where it is checked."""
    return Extents(table, plan, slots, grads) if execute.architecture(_setting()) else None


def launch(
    kernel: str, plan: Plan, table: Table, known: Extents | None, wanted: int, threads: int, arguments: Sequence[Any]
) -> None:
    """Run a kernel to its end; the order of threads and the number of blocks depend on the table.

    Args:
        kernel: its name.
        plan: what it specialises on.
        table: of the slots.
        known: :func:`extents` of the slots.
        wanted: thread blocks for all items, were there no end of them.
        threads: of a block.
        arguments: all of the kernel's; tensors stand for their addresses.
    """
    seed = order(table)
    blocks = min(wanted, 1 + seed % BLOCKS)
    if known is not None:
        arch = execute.architecture(_setting()) or execute.DEFAULT
        execute.launch(kernel, plan, table, known, arch, (blocks, threads), arguments, seed)
        return
    library = module()
    values = numbers(plan)
    plain = struct.pack("".join("f" if isinstance(value, float) else "i" for value in values), *values)
    call = tuple(value.data_ptr() if isinstance(value, Tensor) else value for value in arguments)
    with _launching:
        ctypes.memmove(library.get_global("PLAN"), plain, len(plain))
        library.get_function(kernel)((blocks,), (threads,), call, seed=seed)


@functools.cache
def module() -> Module:
    """Return one library for all plans: building one for each would take the conformance suite hours."""
    from cuda_on_cpu import Module

    sanitize = [name for name in os.environ.get(SANITIZE, "").split(",") if name]
    return Module(FOLDER / KERNELS, include=[FOLDER], variables=["PLAN"], sanitize=sanitize)
