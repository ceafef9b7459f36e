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

#: Elements of a tile, where its blocks are smaller than that.
TILE = 4096

#: Elements of a row that make a block where the format has none.
PLAIN_BLOCK = 256

#: Tiles that one program does at most, and how many programs there should be before it does more than one.
TILES_PER_ITEM, ENOUGH_PROGRAMS = 16, 2048

#: Elements of the largest tile in the interpreter, which takes as long for one tile as for another.
INTERPRETED_TILE = 1 << 16


def cut(plan: Plan, slots: Sequence[Slot]) -> Cut:
    """How to cut these slots."""
    block = plan.format.block_size or PLAIN_BLOCK
    sizes = [slot.param.numel() for slot in slots]
    rows = max((TILE if not INTERPRETED.value else _interpreted_tile(slots, block)) // block, 1)
    tiles = sum(sizes) // (rows * block)
    return Cut(rows, block, rows * min(max(tiles // ENOUGH_PROGRAMS, 1), TILES_PER_ITEM))


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
            PLAN=table.plan,
            ROWS=table.cut.rows,
            BLOCK=table.cut.block,
            num_warps=8,
            enable_fp_fusion=False,
        )
