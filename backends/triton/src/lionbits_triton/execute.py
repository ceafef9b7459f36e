"""Triton's program on a CPU, by ``ptx_on_cpu``, for tests: ``LIONBITS_TRITON_EMULATE=90`` asks for that of sm_90."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lionbits_reference.spec import Plan, Slot
from lionbits_table import Extents, Table, order

if TYPE_CHECKING:
    from ptx_on_cpu import Module

ENVIRONMENT = "LIONBITS_TRITON_EMULATE"

#: Compute capabilities that Triton has been compiled for here.
ARCHITECTURES = (80, 90, 100, 120)

#: Tiles of an item: several, as of a large model on a GPU.
TILES_PER_ITEM = 2


def architecture() -> int:
    """Return the compute capability that the variable names, as 90 for 9.0; 0 without it.

    Raises:
        ValueError: it names none that is known.
    """
    setting = os.environ.get(ENVIRONMENT, "")
    if setting in ("", "0"):
        return 0
    if setting not in map(str, ARCHITECTURES):
        known = ", ".join(map(str, ARCHITECTURES))
        raise ValueError(f"{ENVIRONMENT}={setting}: must be one of {known}, the compute capability to compile for")
    return int(setting)


def obstacle() -> str:
    """Return the reason why kernels cannot be executed although the variable asks for it, or an empty string."""
    if importlib.util.find_spec("ptx_on_cpu") is None:
        way = "pip install ./packages/ptx-on-cpu (in a checkout of lionbits)"
        return f"{ENVIRONMENT}={architecture()} needs ptx-on-cpu: {way}"
    return ""


def extents(table: Table, plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]) -> Extents | None:
    """Return the memory that kernels may touch, where it is checked."""
    return Extents(table, plan, slots, grads) if table.items.device.type == "cpu" and architecture() else None


def launch(compiled: Any, table: Table, extents: Extents, arguments: Sequence[Any]) -> None:
    """Execute a kernel, one program for each item.

    Args:
        compiled: the kernel, as Triton compiled it.
        table, extents: of the slots.
        arguments: all of the kernel's that are no constants; tensors stand for their addresses.

    Raises:
        NotImplementedError: the kernel needs memory that a launch would allocate for it.
        ptx_on_cpu.Fault: the kernel breaks a rule.
    """
    from ptx_on_cpu import Buffer

    metadata = compiled.metadata
    scratch = {name: getattr(metadata, f"{name}_scratch_size", 0) for name in ("global", "profile")}
    if any(scratch.values()):
        raise NotImplementedError(f"{metadata.name} takes scratch memory ({scratch} bytes), which is not emulated")
    function = module(compiled.asm["ptx"]).get_function(metadata.name)
    values = [value.data_ptr() if isinstance(value, Tensor) else value for value in arguments]
    values += [0] * (function.arity - len(values))  # addresses of scratch memory
    buffers = [Buffer(*each) for each in extents.of_launch(table, arguments)]
    threads = 32 * metadata.num_warps
    function((len(table.items),), (threads,), values, buffers, shared=metadata.shared, seed=order(table))


@functools.lru_cache(maxsize=256)
def module(ptx: str) -> Module:
    """Return a kernel of this text, parsed once."""
    from ptx_on_cpu import Module

    return Module(ptx)
