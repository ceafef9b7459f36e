"""Kernel launches: grid and thread groups for each plan, on the slots' device and its current stream, or emulated."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lionbits_reference.spec import Plan, Slot
from lionbits_table import Extents, Table

from . import build, emulate
from .source import SPAN, WARP, block, source, thread_group

#: Threads of a thread block whose thread groups are warps.
THREADS = 128

#: Tiles of an item, at most, and how many items there should be before one has several.
TILES_PER_ITEM, ENOUGH_ITEMS = 32, 8192

#: Thread blocks for each multiprocessor, at most: those take item after item.
BLOCKS_PER_MULTIPROCESSOR = 16


class Prepared(NamedTuple):
    """Inputs of kernels for some slots."""

    plan: Plan
    table: Table
    extents: Extents | None = None  # what kernels may touch, where that is checked


def table(plan: Plan, slots: Sequence[Slot], grads: Sequence[torch.Tensor]) -> Table:
    """Return the device table of these slots, cut into items of whole tiles."""
    tile = thread_group(plan) * SPAN
    if slots[0].param.device.type == "cpu":
        tiles = emulate.TILES_PER_ITEM
    else:
        tiles = sum(slot.param.numel() for slot in slots) // tile // ENOUGH_ITEMS
    return Table(plan, slots, grads, block(plan), tile // block(plan) * min(max(tiles, 1), TILES_PER_ITEM))


def launch(kernel: str, prepared: Prepared, *arguments: Any) -> None:
    """Launch a kernel over all items.

    Args:
        kernel: its name.
        prepared: the plan that it specialises on, and the table of the slots.
        arguments: what follows the table; tensors stand for their addresses.
    """
    plan, table, extents = prepared
    items = len(table.items)
    if not items:
        return
    threads = THREADS if thread_group(plan) == WARP else thread_group(plan)  # a barrier is of a whole thread block
    tables = (table.slots, table.calls, table.items)
    wanted = -(-items * thread_group(plan) // threads)
    device = table.items.device
    if device.type == "cpu":
        emulate.launch(kernel, plan, table, extents, wanted, threads, (*tables, items, *arguments))
        return
    import cupy

    values = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in arguments]
    call = (*(each.data_ptr() for each in tables), items, *values)
    with cupy.cuda.Device(device.index):
        function = _functions(plan, device.index)[kernel]
        blocks = min(wanted, BLOCKS_PER_MULTIPROCESSOR * _multiprocessors(device.index))
        function((blocks,), (threads,), call, stream=_stream(torch.cuda.current_stream(device)))


def _stream(stream: torch.cuda.Stream) -> Any:
    """Return CuPy's object for a stream of torch; CuPy 14 warns of ``ExternalStream``, which is all that 13 has."""
    from cupy import cuda

    if hasattr(stream, "__cuda_stream__") and hasattr(cuda.Stream, "from_external"):
        return cuda.Stream.from_external(stream)
    return cuda.ExternalStream(stream.cuda_stream)


KERNELS = ("step_kernel", "count_kernel", "encode_kernel", "decode_kernel")


@functools.cache
def _functions(plan: Plan, index: int) -> dict[str, Any]:
    """Return the kernels of a plan, loaded on the device, which is the current one."""
    from cupy.cuda import function

    module = function.Module()
    module.load(build.cubin(source(plan), architecture(index)))
    return {name: module.get_function(name) for name in KERNELS}


@functools.cache
def architecture(index: int) -> int:
    """Return the compute capability of a CUDA device, as 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
