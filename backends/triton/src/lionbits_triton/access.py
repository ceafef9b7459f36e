"""Loads and stores of a tile: parameter, gradient and momentum, as float32 whatever they are held in."""

from __future__ import annotations

import triton.language as tl

from . import lanes, lion, tiles
from .lion import device_function


@device_function
def load_momentum(slot, tile, PLAN: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    """float32 momentum; 0 where there is no element."""
    FORMAT: tl.constexpr = PLAN.format
    if not FORMAT.quantised:
        mask = tiles.mask_of(tile, BLOCK, IS_EVEN)
        at = tiles.pointer(slot.momentum, tl.float32, IS_EVEN)
        return tl.load(at + tiles.state_offsets(slot, tile, BLOCK, IS_EVEN), mask=mask, other=0.0)
    else:
        place, mask = tiles.code_offsets(slot, tile, FORMAT.bits, BLOCK, IS_EVEN)
        packed = tl.load(tiles.pointer(slot.momentum, tl.uint8, IS_EVEN) + place, mask=mask, other=0)
        number = tile.block
        if FORMAT.tensor_wise:
            number = number * 0
        scale = tl.load(tiles.pointer(slot.scale, tl.float32, False) + number, mask=tile.length > 0, other=0.0)
        return lion.decode(tiles.unpack(packed, FORMAT.bits), scale[:, None], FORMAT)


@device_function
def store_momentum(
    m, absmax, lane, slot, tile, PLAN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr
):
    """m as it is, or as codes of blocks with these largest magnitudes. A tensor-wise scale is left to the caller."""
    FORMAT: tl.constexpr = PLAN.format
    if not FORMAT.quantised:
        mask = tiles.mask_of(tile, BLOCK, IS_EVEN)
        at = tiles.pointer(slot.momentum, tl.float32, IS_EVEN)
        tl.store(at + tiles.state_offsets(slot, tile, BLOCK, IS_EVEN), m, mask=mask)
    else:
        code = lion.encode(m, lion.block_inverse(absmax, FORMAT)[:, None], lane, FORMAT)
        place, mask = tiles.code_offsets(slot, tile, FORMAT.bits, BLOCK, IS_EVEN)
        packed = tiles.pack(code, FORMAT.bits, ROWS, BLOCK)
        tl.store(tiles.pointer(slot.momentum, tl.uint8, IS_EVEN) + place, packed, mask=mask)
        if not FORMAT.tensor_wise:
            at = tiles.pointer(slot.scale, tl.float32, False) + tile.block
            tl.store(at, lion.block_scale(absmax, FORMAT), mask=tile.length > 0)


@device_function
def load_grad(slot, grad, tile, PLAN: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    """The gradient as float32, not scaled; 0 where there is no element."""
    DTYPE: tl.constexpr = PLAN.grad_dtype
    at = tiles.float_pointer(grad, DTYPE, IS_EVEN) + tiles.grad_offsets(slot, tile, BLOCK, IS_EVEN)
    return lion.widen(tl.load(at, mask=tiles.mask_of(tile, BLOCK, IS_EVEN), other=0), DTYPE)


@device_function
def load_param(slot, tile, PLAN: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    """p as float32, whole where the state has what bfloat16 drops."""
    mask = tiles.mask_of(tile, BLOCK, IS_EVEN)
    DTYPE: tl.constexpr = PLAN.param_dtype
    at = tiles.float_pointer(slot.param, DTYPE, IS_EVEN) + tiles.param_offsets(slot, tile, BLOCK, IS_EVEN)
    stored = tl.load(at, mask=mask, other=0)
    if PLAN.param_rounding == "compensated":
        at = _rest(slot, PLAN, IS_EVEN) + tiles.state_offsets(slot, tile, BLOCK, IS_EVEN)
        return lion.join_master(stored, tl.load(at, mask=mask, other=0), PLAN)
    else:
        return lion.widen(stored, DTYPE)


@device_function
def store_param(p, drawn, slot, tile, PLAN: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    """p', rounded once, and what that drops where the state has a place for it."""
    mask = tiles.mask_of(tile, BLOCK, IS_EVEN)
    DTYPE: tl.constexpr = PLAN.param_dtype
    at = tiles.float_pointer(slot.param, DTYPE, IS_EVEN) + tiles.param_offsets(slot, tile, BLOCK, IS_EVEN)
    if PLAN.param_rounding == "nearest":
        tl.store(at, lion.narrow(p, DTYPE), mask=mask)
    elif PLAN.param_rounding == "compensated":
        lane = p.to(tl.uint32, bitcast=True)
        if PLAN.master_bits == 24:
            lane = lanes.draw(drawn, slot, tile, BLOCK, IS_EVEN)
        kept, rest = lion.split_master(p, lane, PLAN)
        tl.store(at, kept, mask=mask)
        rest_at = _rest(slot, PLAN, IS_EVEN) + tiles.state_offsets(slot, tile, BLOCK, IS_EVEN)
        tl.store(rest_at, rest.to(rest_at.dtype.element_ty), mask=mask)
    else:
        lane = lanes.draw(drawn, slot, tile, BLOCK, IS_EVEN)
        tl.store(at, lion.narrow_unbiased(p, lane), mask=mask)


@device_function
def _rest(slot, PLAN: tl.constexpr, IS_EVEN: tl.constexpr):
    if PLAN.master_bits == 24:
        return tiles.pointer(slot.rest, tl.int8, IS_EVEN)
    else:
        return tiles.pointer(slot.rest, tl.int16, IS_EVEN)
