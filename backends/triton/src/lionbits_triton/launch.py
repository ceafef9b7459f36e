"""How kernels are launched: cuts and warps for each plan, on the device and stream of the slots."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton

from lionbits_reference.spec import Plan, Slot, matrix_shape

from .lion import INTERPRETED
from .table import Cut, Table

#: Elements of a row that make a block where the format has none.
PLAIN_BLOCK = 256

#: Elements of a tile for one warp, on the fast path (16 for a thread: 16 bytes of 8-bit codes) and off it.
WARP_TILE, UNEVEN_WARP_TILE = 512, 256

#: Tiles that one program does at most, and how many programs there should be before it does more than one.
TILES_PER_ITEM, ENOUGH_PROGRAMS = 32, 8192

#: Elements of the largest tile in the interpreter, which takes as long for one tile as for another.
INTERPRETED_TILE = 1 << 16


def cut(plan: Plan, slots: Sequence[Slot]) -> Cut:
    """How to cut these slots: programs of one warp, which wait for nobody, unless a block is too large for one."""
    block = plan.format.block_size or PLAIN_BLOCK
    if INTERPRETED.value:
        rows = uneven_rows = _interpreted_tile(slots, block) // block
    else:
        rows, uneven_rows = max(WARP_TILE // block, 1), max(UNEVEN_WARP_TILE // block, 1)
    tiles = sum(slot.param.numel() for slot in slots) // (rows * block)
    item = rows * min(max(tiles // ENOUGH_PROGRAMS, 1), TILES_PER_ITEM)
    return Cut(rows, uneven_rows, block, item, warps=max(block // UNEVEN_WARP_TILE, 1))


def _interpreted_tile(slots: Sequence[Slot], block: int) -> int:
    """Elements of a power of two of blocks that the largest slot fits in."""
    shapes = [matrix_shape(slot.param.shape) for slot in slots]
    blocks = max(rows * -(-columns // block) for rows, columns in shapes)
    return min(triton.next_power_of_2(max(blocks, 1)) * block, INTERPRETED_TILE)


def launch(kernel: Any, table: Table, *arguments: Any, **constants: Any) -> None:
    """Launch one program per work item. What a kernel specialises on is the plan, the cut, and ``constants``."""
    programs = len(table.items)
    if not programs:
        return
    device = table.items.device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](
            *(table.slots, table.calls, table.items, *arguments),
            **constants,
            UNEVEN_ROWS=table.cut.uneven_rows,
            PLAN=table.plan,
            BLOCK=table.cut.block,
            num_warps=table.cut.warps,
            enable_fp_fusion=False,
        )
