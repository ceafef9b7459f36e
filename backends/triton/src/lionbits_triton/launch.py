"""Kernel launches: cuts and warps for each plan, on the device and current stream of the slots."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton

from lionbits_reference.spec import Plan, Slot
from lionbits_table import Extents, Table

from . import execute, triton_private
from .lion import INTERPRETED
from .variant import KernelVariant

#: Options of every kernel: a*b + c rounds twice.
EXACT = {"enable_fp_fusion": False}

#: Elements of a row that make a block where the format has none.
PLAIN_BLOCK = 256

#: Elements that a warp has of a tile, on the fast path and off it, by whether momentum is in codes. With codes there
#: are many instructions per element, and 16 elements for a thread have fewest (59 on sm_90, not 64). Without, bytes are
#: the bound: 8 for a thread leave it few registers (64, not 128), so that more programs fit.
WARP_TILE = {True: (512, 256), False: (256, 128)}

#: Tiles that one program does at most, and how many programs there should be before it does more than one.
TILES_PER_ITEM, ENOUGH_PROGRAMS = 32, 8192

#: Elements of the largest tile in the interpreter, which takes as long for one tile as for another.
INTERPRETED_TILE = 1 << 16

#: The oldest compute capability of NVIDIA's that Triton compiles these kernels for: Volta.
OLDEST = (7, 0)

#: On the CPU, one thread at a time: while the interpreter runs a kernel, functions of triton.language are others; what
#: Triton compiles for is one choice of the whole process.
_EMULATION = threading.Lock()


class Cut(NamedTuple):
    """The cut of slots into tiles and items, with the two variants of their kernels."""

    even: KernelVariant
    uneven: KernelVariant
    item: int  # blocks that one program does at most
    warps: int  # of a program


class Prepared(NamedTuple):
    """Inputs of kernels for some slots."""

    cut: Cut
    table: Table
    extents: Extents | None = None  # what kernels may touch, where that is checked


def cut(plan: Plan, slots: Sequence[Slot]) -> Cut:
    """Return the cut of these slots: programs of one warp, which need no barrier, unless a block is too large."""
    block = plan.format.block_size or PLAIN_BLOCK
    per_warp, uneven_per_warp = WARP_TILE[plan.format.quantised]
    warps = max(block // uneven_per_warp, 1)
    rows, uneven_rows = (elements * warps // block for elements in (per_warp, uneven_per_warp))
    if INTERPRETED.value:
        rows = uneven_rows = _interpreted_rows(slots, block)
    tiles = sum(slot.param.numel() for slot in slots) // (rows * block)
    least = execute.TILES_PER_ITEM if slots and slots[0].param.device.type == "cpu" and execute.architecture() else 1
    return Cut(
        even=KernelVariant(plan, rows, block, even=True),
        uneven=KernelVariant(plan, uneven_rows, block, even=False),
        item=rows * min(max(tiles // ENOUGH_PROGRAMS, least), TILES_PER_ITEM),
        warps=warps,
    )


def launch(kernel: Any, prepared: Prepared, *arguments: Any, **constants: Any) -> None:
    """Launch one program per work item."""
    cut, table, extents = prepared
    if not len(table.items):
        return
    device, grid = table.items.device, (len(table.items),)
    call = (table.slots, table.calls, table.items, *arguments)
    with _EMULATION if device.type == "cpu" else torch.cuda.device(device):
        if extents is None:
            kernel[grid](*call, **constants, num_warps=cut.warps, **EXACT)
        else:
            execute.launch(compile(kernel, call, cut, execute.architecture(), **constants), table, extents, call)


def compile(kernel: Any, arguments: Sequence[Any], cut: Cut, architecture: int | str, **constants: Any) -> Any:
    """Compile a kernel as a launch on a GPU of this architecture would, without such a GPU; Triton caches it."""
    triton_private.compile_for(architecture)
    return kernel.warmup(*arguments, grid=(1,), **constants, num_warps=cut.warps, **EXACT)


@functools.cache
def obstacle(index: int) -> str:
    """Return the reason why kernels cannot run on a GPU, or an empty string.

    Args:
        index: of the GPU, from NVIDIA or, where torch is built for ROCm, from AMD.
    """
    found = torch.cuda.get_device_capability(index)
    if torch.version.hip is None and found < OLDEST:
        return (
            f"Triton kernels are compiled for compute capability {OLDEST[0]}.{OLDEST[1]} and up; cuda:{index} has "
            f"{found[0]}.{found[1]}"
        )
    return triton_private.obstacle()


def _interpreted_rows(slots: Sequence[Slot], block: int) -> int:
    """Return the power of two of blocks that holds the largest slot, up to the most that a tile may have."""
    blocks = max(rows * -(-columns // block) for rows, columns in (slot.matrix for slot in slots))
    return max(min(int(triton.next_power_of_2(max(blocks, 1))), INTERPRETED_TILE // block), 1)
