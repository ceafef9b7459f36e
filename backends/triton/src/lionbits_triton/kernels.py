"""The kernels: a step of many tensors, the counts that may have to come before it, and the codec.

One program serves one work item, a run of blocks of one slot, tile by tile. Plans differ in constexprs only; what
changes from step to step (learning rates, decay, betas, the seed, how momentum is rounded) is a number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import access, lanes, lion, tiles
from .lion import INFINITE, device_function


def _kernel(function: Callable[..., Any]) -> Any:
    """A kernel that is compiled once per plan and cut: no number or address of a call has a variant of its own."""
    parameters = inspect.signature(function).parameters.values()
    return triton.jit(do_not_specialize=[p.name for p in parameters if "constexpr" not in str(p.annotation)])(function)


class Numbers(NamedTuple):
    """What multiplies the elements of a slot in this call; float32, ready-made."""

    lr: Any
    keep: Any
    grad_scale: Any
    b1: Any
    one_minus_b1: Any
    b2: Any
    one_minus_b2: Any


@device_function
def step_tile(
    slot, grad, tile, n, state, param, absmax,
    PLAN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    """Update one tile; how many of its elements were skipped comes back."""
    p = access.load_param(slot, tile, PLAN, ROWS, BLOCK, IS_EVEN)
    g = access.load_grad(slot, grad, tile, PLAN, ROWS, BLOCK, IS_EVEN) * n.grad_scale
    m = access.load_momentum(slot, tile, PLAN, BLOCK, IS_EVEN)
    moved = p * n.keep - lion.move(m, g, n.lr, n.b1, n.one_minus_b1, PLAN)
    advanced = lion.blend(m, g, n.b2, n.one_minus_b2)
    skips = 0
    if PLAN.nonfinite == "skip":
        largest = tl.max(lion.magnitude(advanced), 1)
        if tl.max(largest, 0) >= INFINITE:  # rare: what was read is read again, so that nobody has to keep it
            applied = lion.magnitude(advanced) < INFINITE
            moved = tl.where(applied, moved, access.load_param(slot, tile, PLAN, ROWS, BLOCK, IS_EVEN))
            advanced = tl.where(applied, advanced, access.load_momentum(slot, tile, PLAN, BLOCK, IS_EVEN))
            largest = tl.max(lion.magnitude(advanced), 1)
            skips = tl.sum(tl.sum((~applied & tiles.mask_of(tile, BLOCK, IS_EVEN)).to(tl.int32), 1), 0)
    else:  # a factor that is not finite makes a NaN of what is not there
        mask = tiles.mask_of(tile, BLOCK, IS_EVEN)
        largest = tl.max(tl.where(mask, lion.magnitude(advanced), 0), 1)
    access.store_param(moved, param, slot, tile, PLAN, ROWS, BLOCK, IS_EVEN)
    lane = lion.bits_of(advanced)
    if PLAN.format.quantised:
        lane = lanes.draw(state, slot, tile, BLOCK, IS_EVEN)
    if PLAN.format.tensor_wise:
        largest = tl.zeros([ROWS], tl.uint32) + lion.bits_of(absmax)
    access.store_momentum(advanced, lion.float_of(largest), lane, slot, tile, PLAN, ROWS, BLOCK, IS_EVEN)
    return skips


@device_function
def step_item(
    slot, grad, first, last, n, state, param, absmax,
    PLAN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    """Update the blocks of one work item; how many elements were skipped comes back."""
    skips = 0
    while first < last:
        tile = tiles.tile_at(slot, first, last, ROWS, BLOCK)
        skips += step_tile(slot, grad, tile, n, state, param, absmax, PLAN, ROWS, BLOCK, IS_EVEN)
        first += ROWS
    return skips


@_kernel
def step_kernel(
    table, calls, items, lr, keep, grad_scale, step, absmax, skipped,
    b1, one_minus_b1, b2, one_minus_b2, seed_low: tl.uint32, seed_high: tl.uint32, stochastic, nearest,
    PLAN: tl.constexpr, ROWS: tl.constexpr, UNEVEN_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update every element of every slot, once."""
    item = items + tl.program_id(0) * 3
    j, first, last = tl.load(item), tl.load(item + 1).to(tl.int32), tl.load(item + 2).to(tl.int32)
    slot = tiles.load_slot(table, j)
    grad, is_even = tl.load(calls + 2 * j), tl.load(calls + 2 * j + 1)
    n = Numbers(
        lr=tl.load(lr + j),
        keep=tl.load(keep + j),
        grad_scale=tl.load(grad_scale + j),
        b1=b1,
        one_minus_b1=one_minus_b1,
        b2=b2,
        one_minus_b2=one_minus_b2,
    )
    count = tl.load(step + j).to(tl.uint32)
    low, high = seed_low.to(tl.uint32), seed_high.to(tl.uint32)
    state = lanes.state_lanes(slot.index, count, low, high, stochastic, nearest)
    param = lanes.param_lanes(slot.index, count, low, high, PLAN)
    largest = tl.load(absmax + j)
    if (is_even != 0) & (last <= slot.even_blocks):
        skips = step_item(slot, grad, first, last, n, state, param, largest, PLAN, ROWS, BLOCK, True)
    else:
        skips = step_item(slot, grad, first, last, n, state, param, largest, PLAN, UNEVEN_ROWS, BLOCK, False)
    if PLAN.nonfinite == "skip":
        tl.atomic_add(skipped, skips.to(tl.int64), mask=skips > 0, sem="relaxed")


# --- what may have to come before a step ----------------------------------------------------------------


@device_function
def count_item(
    slot, grad, first, last, n,
    PLAN: tl.constexpr, ALIGNED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    """Of the blocks of one work item: elements that are aligned and not skipped, or the bits of the largest |m'|."""
    found = tl.zeros([ROWS], tl.int32)
    while first < last:
        tile = tiles.tile_at(slot, first, last, ROWS, BLOCK)
        g = access.load_grad(slot, grad, tile, PLAN, ROWS, BLOCK, IS_EVEN) * n.grad_scale
        m = access.load_momentum(slot, tile, PLAN, BLOCK, IS_EVEN)
        advanced = lion.magnitude(lion.blend(m, g, n.b2, n.one_minus_b2))
        counted = tiles.mask_of(tile, BLOCK, IS_EVEN)
        if ALIGNED:
            counted = counted & lion.agree(lion.blend(m, g, n.b1, n.one_minus_b1), g)
            if PLAN.nonfinite == "skip":
                counted = counted & (advanced < INFINITE)
            found += tl.sum(counted.to(tl.int32), 1)
        else:
            if PLAN.nonfinite == "skip":
                advanced = tl.where(advanced < INFINITE, advanced, lion.magnitude(m))
            found = tl.maximum(found, tl.max(tl.where(counted, advanced, 0).to(tl.int32), 1))
        first += ROWS
    if ALIGNED:
        return tl.sum(found, 0)
    else:
        return tl.max(found, 0)


@_kernel
def count_kernel(
    table, calls, items, grad_scale, found, b1, one_minus_b1, b2, one_minus_b2,
    PLAN: tl.constexpr, ALIGNED: tl.constexpr, ROWS: tl.constexpr, UNEVEN_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Per slot: how many elements are aligned (int64), or the bits of the largest |m'| (int32)."""
    item = items + tl.program_id(0) * 3
    j, first, last = tl.load(item), tl.load(item + 1).to(tl.int32), tl.load(item + 2).to(tl.int32)
    slot = tiles.load_slot(table, j)
    grad, is_even = tl.load(calls + 2 * j), tl.load(calls + 2 * j + 1)
    scale = tl.load(grad_scale + j)
    n = Numbers(
        lr=scale, keep=scale, grad_scale=scale, b1=b1, one_minus_b1=one_minus_b1, b2=b2, one_minus_b2=one_minus_b2
    )
    if (is_even != 0) & (last <= slot.even_blocks):
        count = count_item(slot, grad, first, last, n, PLAN, ALIGNED, ROWS, BLOCK, True)
    else:
        count = count_item(slot, grad, first, last, n, PLAN, ALIGNED, UNEVEN_ROWS, BLOCK, False)
    if ALIGNED:
        tl.atomic_add(found + j, count.to(tl.int64), sem="relaxed")
    else:
        tl.atomic_max(found + j, count, sem="relaxed")


# --- the codec ------------------------------------------------------------------------------------------


@_kernel
def encode_kernel(table, calls, items, absmax, PLAN: tl.constexpr, UNEVEN_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Codes and scales, to nearest, of a float32 momentum that stands where gradients do."""
    item = items + tl.program_id(0) * 3
    j, first, last = tl.load(item), tl.load(item + 1).to(tl.int32), tl.load(item + 2).to(tl.int32)
    slot = tiles.load_slot(table, j)
    grad = tl.load(calls + 2 * j)
    while first < last:
        tile = tiles.tile_at(slot, first, last, UNEVEN_ROWS, BLOCK)
        m = access.load_grad(slot, grad, tile, PLAN, UNEVEN_ROWS, BLOCK, False)
        largest = tl.max(lion.magnitude(m), 1)
        if PLAN.format.tensor_wise:
            largest = tl.zeros([UNEVEN_ROWS], tl.uint32) + lion.bits_of(tl.load(absmax))
            at = tiles.pointer(slot.scale, tl.float32, False) + tile.block * 0
            tl.store(at, lion.block_scale(lion.float_of(largest), PLAN.format), mask=tile.block == 0)
        lane = tl.full([UNEVEN_ROWS, BLOCK], 0x8000, tl.uint32)
        access.store_momentum(m, lion.float_of(largest), lane, slot, tile, PLAN, UNEVEN_ROWS, BLOCK, False)
        first += UNEVEN_ROWS


@_kernel
def decode_kernel(table, calls, items, PLAN: tl.constexpr, UNEVEN_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """float32 momentum, into where parameters stand."""
    item = items + tl.program_id(0) * 3
    j, first, last = tl.load(item), tl.load(item + 1).to(tl.int32), tl.load(item + 2).to(tl.int32)
    slot = tiles.load_slot(table, j)
    while first < last:
        tile = tiles.tile_at(slot, first, last, UNEVEN_ROWS, BLOCK)
        m = access.load_momentum(slot, tile, PLAN, BLOCK, False)
        at = tiles.param_pointers(slot, tile, tl.float32, UNEVEN_ROWS, BLOCK, False)
        tl.store(at, m, mask=tiles.mask_of(tile, BLOCK, False))
        first += UNEVEN_ROWS
