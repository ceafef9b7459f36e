"""The kernels: a step of many tensors, the counts that may precede it, and the codec.

One program serves one work item, a run of blocks of one slot, tile by tile. Plans differ in constexprs only. All that
changes from step to step (learning rates, decay, betas, the seed, how momentum is rounded) is a number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import access, dither, lion, tiles
from .lion import INFINITE, device_function


def _kernel(function: Callable[..., Any]) -> Any:
    """Return a kernel that is compiled once for its paths: no number or address of a call has a variant of its own."""
    parameters = inspect.signature(function).parameters.values()
    return triton.jit(do_not_specialize=[p.name for p in parameters if "constexpr" not in str(p.annotation)])(function)


class KernelScalars(NamedTuple):
    """Factors of the elements of a slot in this call; float32, computed on the host."""

    lr: Any
    keep: Any
    grad_scale: Any
    b1: Any
    one_minus_b1: Any
    b2: Any
    one_minus_b2: Any


class Item(NamedTuple):
    """The work of a program: blocks ``first`` to ``last`` of a slot, with its gradient."""

    j: Any  # which slot
    slot: Any
    grad: Any  # its address
    first: Any
    last: Any
    even: Any  # whether the fast path may be taken


@device_function
def load_item(table, calls, items):
    """The item of this program."""
    item = items + tl.program_id(0) * 3
    j, first, last = tl.load(item), tl.load(item + 1).to(tl.int32), tl.load(item + 2).to(tl.int32)
    slot = tiles.load_slot(table, j)
    grad, aligned = tl.load(calls + 2 * j), tl.load(calls + 2 * j + 1)
    return Item(j=j, slot=slot, grad=grad, first=first, last=last, even=(aligned != 0) & (last <= slot.even_blocks))


# --- step -----------------------------------------------------------------------------------------------


@device_function
def step_tile(slot, grad, tile, n, state, param, absmax, VARIANT: tl.constexpr):
    """Update one tile and return the number of its elements that were skipped."""
    p = access.load_param(slot, tile, VARIANT)
    g = access.load_grad(slot, grad, tile, VARIANT) * n.grad_scale
    m = access.load_momentum(slot, tile, VARIANT)
    moved = p * n.keep - lion.move(m, g, n.lr, n.b1, n.one_minus_b1, VARIANT)
    advanced = lion.blend(m, g, n.b2, n.one_minus_b2)
    skips = 0
    if VARIANT.plan.nonfinite == "skip":
        largest = tiles.block_max(lion.magnitude(advanced))
        if tl.max(largest, 0) >= INFINITE:  # rare: what was read is read again, so that nobody has to keep it
            applied = lion.magnitude(advanced) < INFINITE
            moved = tl.where(applied, moved, access.load_param(slot, tile, VARIANT))
            advanced = tl.where(applied, advanced, access.load_momentum(slot, tile, VARIANT))
            largest = tiles.block_max(lion.magnitude(advanced))
            skips = tl.sum(tiles.block_sum((~applied & tile.mask).to(tl.int32)), 0)
    else:  # a factor that is not finite makes a NaN of what is not there
        largest = tiles.block_max(tl.where(tile.mask, lion.magnitude(advanced), 0))
    access.store_param(moved, param, slot, tile, VARIANT)
    noise = lion.bits_of(advanced)
    if VARIANT.format.quantised:
        noise = dither.draw(state, slot, tile, VARIANT)
    if VARIANT.format.tensor_wise:
        largest = tl.full([VARIANT.rows], 0, tl.uint32) + lion.bits_of(absmax)
    access.store_momentum(advanced, lion.float_of(largest), noise, slot, tile, VARIANT)
    return skips


@device_function
def step_item(item, n, state, param, absmax, VARIANT: tl.constexpr):
    """Update the blocks of one item and return the number of elements that were skipped."""
    skips = 0
    first = item.first
    while first < item.last:
        tile = tiles.tile_at(item.slot, first, item.last, VARIANT)
        skips += step_tile(item.slot, item.grad, tile, n, state, param, absmax, VARIANT)
        first += VARIANT.rows
    return skips


@_kernel
def step_kernel(
    table, calls, items, lr, keep, grad_scale, step, absmax, skipped, b1, one_minus_b1, b2, one_minus_b2,
    seed_low: tl.uint32, seed_high: tl.uint32, stochastic, nearest, EVEN: tl.constexpr, UNEVEN: tl.constexpr,
):  # fmt: skip
    """Update every element of every slot, once."""
    item = load_item(table, calls, items)
    n = KernelScalars(
        lr=tl.load(lr + item.j),
        keep=tl.load(keep + item.j),
        grad_scale=tl.load(grad_scale + item.j),
        b1=b1,
        one_minus_b1=one_minus_b1,
        b2=b2,
        one_minus_b2=one_minus_b2,
    )
    count = tl.load(step + item.j).to(tl.uint32)
    low, high = seed_low.to(tl.uint32), seed_high.to(tl.uint32)
    state = dither.Dither(salt=count, phase=count, drawn=count, fixed=count)  # unused
    param = state
    if EVEN.format.quantised:
        state = dither.state_noise(item.slot.index, count, low, high, stochastic, nearest)
    if EVEN.plan.draws_for_param:
        param = dither.param_noise(item.slot.index, count, low, high, EVEN)
    largest = tl.load(absmax + item.j)
    if item.even:
        skips = step_item(item, n, state, param, largest, EVEN)
    else:
        skips = step_item(item, n, state, param, largest, UNEVEN)
    if EVEN.plan.nonfinite == "skip":
        tl.atomic_add(skipped, skips.to(tl.int64), mask=skips > 0, sem="relaxed")


# --- what may have to come before a step ----------------------------------------------------------------


@device_function
def count_item(item, n, VARIANT: tl.constexpr, ALIGNED: tl.constexpr):
    """Count the aligned elements, not skipped, in the blocks of an item, or find the bits of the largest |m'|."""
    found = tl.full([VARIANT.rows], 0, tl.int32)
    first = item.first
    while first < item.last:
        tile = tiles.tile_at(item.slot, first, item.last, VARIANT)
        g = access.load_grad(item.slot, item.grad, tile, VARIANT) * n.grad_scale
        m = access.load_momentum(item.slot, tile, VARIANT)
        advanced = lion.magnitude(lion.blend(m, g, n.b2, n.one_minus_b2))
        counted = tile.mask
        if ALIGNED:
            counted = counted & lion.agree(lion.blend(m, g, n.b1, n.one_minus_b1), g)
            if VARIANT.plan.nonfinite == "skip":
                counted = counted & (advanced < INFINITE)
            found += tiles.block_sum(counted.to(tl.int32))
        else:
            if VARIANT.plan.nonfinite == "skip":
                advanced = tl.where(advanced < INFINITE, advanced, lion.magnitude(m))
            found = tl.maximum(found, tiles.block_max(tl.where(counted, advanced, 0).to(tl.int32)))
        first += VARIANT.rows
    if ALIGNED:
        return tl.sum(found, 0)
    else:
        return tl.max(found, 0)


@_kernel
def count_kernel(
    table, calls, items, grad_scale, found, b1, one_minus_b1, b2, one_minus_b2,
    EVEN: tl.constexpr, UNEVEN: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Per slot: how many elements are aligned (int64), or the bits of the largest |m'| (int32)."""
    item = load_item(table, calls, items)
    scale = tl.load(grad_scale + item.j)
    n = KernelScalars(
        lr=scale, keep=scale, grad_scale=scale, b1=b1, one_minus_b1=one_minus_b1, b2=b2, one_minus_b2=one_minus_b2
    )
    if item.even:
        count = count_item(item, n, EVEN, ALIGNED)
    else:
        count = count_item(item, n, UNEVEN, ALIGNED)
    if ALIGNED:
        tl.atomic_add(found + item.j, count.to(tl.int64), sem="relaxed")
    else:
        tl.atomic_max(found + item.j, count, sem="relaxed")


# --- the codec ------------------------------------------------------------------------------------------


@_kernel
def encode_kernel(table, calls, items, absmax, UNEVEN: tl.constexpr):
    """Encode a float32 momentum, passed as gradients, to nearest."""
    item = load_item(table, calls, items)
    first = item.first
    while first < item.last:
        tile = tiles.tile_at(item.slot, first, item.last, UNEVEN)
        m = access.load_grad(item.slot, item.grad, tile, UNEVEN)
        largest = tiles.block_max(lion.magnitude(m))
        if UNEVEN.format.tensor_wise:
            largest = tl.full([UNEVEN.rows], 0, tl.uint32) + lion.bits_of(tl.load(absmax))
            scale = lion.block_scale(lion.float_of(largest), UNEVEN)
            tl.store(tiles.scale_pointers(item.slot, tile, UNEVEN), scale, mask=tile.block == 0)
        noise = tl.full([UNEVEN.parts, UNEVEN.rows, UNEVEN.width], 0x8000, tl.uint32)
        access.store_momentum(m, lion.float_of(largest), noise, item.slot, tile, UNEVEN)
        first += UNEVEN.rows


@_kernel
def decode_kernel(table, calls, items, UNEVEN: tl.constexpr):
    """Decode to float32 momentum, written to the parameters."""
    item = load_item(table, calls, items)
    first = item.first
    while first < item.last:
        tile = tiles.tile_at(item.slot, first, item.last, UNEVEN)
        m = access.load_momentum(item.slot, tile, UNEVEN)
        tl.store(tiles.param_pointers(item.slot, tile, UNEVEN), m, mask=tile.mask)
        first += UNEVEN.rows
