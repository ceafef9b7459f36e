"""NVRTC's program on a CPU, by ``ptx_on_cpu``, for tests: ``LIONBITS_CUPY_EMULATE=ptx``, or ``ptx:80`` for sm_80."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lionbits_reference.spec import Plan
from lionbits_table import Extents, Table

from . import build
from .source import source

if TYPE_CHECKING:
    from ptx_on_cpu import Module

#: The compute capability that ``ptx`` stands for.
DEFAULT = 90


def architecture(setting: str) -> int:
    """Return the compute capability that a value of the variable names, as 90; 0 if it does not ask for PTX.

    Raises:
        ValueError: it asks for PTX, but not for a compute capability.
    """
    kind, _, number = setting.partition(":")
    if kind != "ptx":
        return 0
    if number and not number.isdigit():
        raise ValueError(f"LIONBITS_CUPY_EMULATE={setting}: after the colon must be a compute capability, as in ptx:80")
    return int(number) if number else DEFAULT


def launch(
    kernel: str,
    plan: Plan,
    table: Table,
    extents: Extents,
    arch: int,
    sizes: tuple[int, int],
    arguments: Sequence[Any],
    seed: int,
) -> None:
    """Execute a kernel as NVRTC compiles it, with the arguments that a GPU would get.

    Args:
        kernel: its name.
        plan: what it specialises on.
        table, extents: of the slots.
        arch: compute capability.
        sizes: thread blocks, and threads of each.
        arguments: all of the kernel's; tensors stand for their addresses.
        seed: the order of thread blocks and warps.

    On an even tile, a thread without elements loads those of the slot's beginning, which others store, and uses none of
    them. Such loads are allowed to race.
    """
    from ptx_on_cpu import Buffer

    blocks, threads = sizes
    buffers = [Buffer(*each) for each in extents.of_launch(table, arguments)]
    values = [value.data_ptr() if hasattr(value, "data_ptr") else value for value in arguments]
    module(plan, arch).get_function(kernel)((blocks,), (threads,), values, buffers, seed=seed, racing_loads=True)


@functools.lru_cache(maxsize=64)
def module(plan: Plan, arch: int) -> Module:
    """Return the kernels of a plan, as NVRTC compiles them for a compute capability."""
    from ptx_on_cpu import Module

    return Module(build.ptx(source(plan), arch))
