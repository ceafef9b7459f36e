"""Loads and stores of a tile: parameter, gradient and momentum, as float32 whatever they are held in."""

from __future__ import annotations

import torch
import triton.language as tl

from . import lanes, lion, tiles
from .lion import device_function


@device_function
def load_grad(
    slot, grad, tile, PLAN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr
):
    """The gradient as float32, not scaled; 0 where there is no element."""
    DTYPE: tl.constexpr = PLAN.grad_dtype
    TYPE: tl.constexpr = tl.float32 if DTYPE == torch.float32 else tl.uint16
    at = tiles.grad_pointers(slot, grad, tile, TYPE, ROWS, BLOCK, IS_EVEN)
    return lion.widen(tl.load(at, mask=tiles.mask_of(tile, BLOCK, IS_EVEN), other=0), DTYPE)


@device_function
def load_param(slot, tile, PLAN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    """p as float32, whole where the state has what bfloat16 drops."""
    DTYPE: tl.constexpr = PLAN.param_dtype
    TYPE: tl.constexpr = tl.float32 if DTYPE == torch.float32 else tl.uint16
    mask = tiles.mask_of(tile, BLOCK, IS_EVEN)
    stored = tl.load(tiles.param_pointers(slot, tile, TYPE, ROWS, BLOCK, IS_EVEN), mask=mask, other=0)
    if PLAN.param_rounding == "compensated":
        rest = tl.load(_rest_pointers(slot, tile, PLAN, BLOCK, IS_EVEN), mask=mask, other=0)
        return lion.join_master(stored, rest, PLAN)
    else:
        return lion.widen(stored, DTYPE)


@device_function
def store_param(
    p, drawn, slot, tile, PLAN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr
):
    """p', rounded once, and what that drops where the state has a place for it."""
    DTYPE: tl.constexpr = PLAN.param_dtype
    TYPE: tl.constexpr = tl.float32 if DTYPE == torch.float32 else tl.uint16
    mask = tiles.mask_of(tile, BLOCK, IS_EVEN)
    at = tiles.param_pointers(slot, tile, TYPE, ROWS, BLOCK, IS_EVEN)
    if PLAN.param_rounding == "nearest":
        tl.store(at, lion.narrow(p, DTYPE), mask=mask)
    elif PLAN.param_rounding == "compensated":
        lane = lion.bits_of(p)
        if PLAN.master_bits == 24:
            lane = lanes.draw(drawn, slot, tile, BLOCK, IS_EVEN)
        kept, rest = lion.split_master(p, lane, PLAN)
        tl.store(at, kept, mask=mask)
        tl.store(_rest_pointers(slot, tile, PLAN, BLOCK, IS_EVEN), rest, mask=mask)
    else:
        lane = lanes.draw(drawn, slot, tile, BLOCK, IS_EVEN)
        tl.store(at, lion.narrow_unbiased(p, lane), mask=mask)


@device_function
def _rest_pointers(slot, tile, PLAN: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    TYPE: tl.constexpr = tl.int8 if PLAN.master_bits == 24 else tl.int16
    return tiles.state_pointers(slot, slot.rest, tile, TYPE, BLOCK, IS_EVEN)


@device_function
def load_momentum(slot, tile, PLAN: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    """float32 momentum; 0 where there is no element."""
    FORMAT: tl.constexpr = PLAN.format
    if not FORMAT.quantised:
        at = tiles.state_pointers(slot, slot.momentum, tile, tl.float32, BLOCK, IS_EVEN)
        return tl.load(at, mask=tiles.mask_of(tile, BLOCK, IS_EVEN), other=0.0)
    else:
        at, mask = tiles.code_pointers(slot, tile, PLAN, BLOCK, IS_EVEN)
        code = tiles.unpack(tl.load(at, mask=mask, other=0), FORMAT.bits)
        scale = tl.load(_scale_pointers(slot, tile, PLAN), mask=tile.length > 0, other=0.0)
        return lion.decode(code, scale[:, None], FORMAT)


@device_function
def store_momentum(
    m, absmax, lane, slot, tile, PLAN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr
):
    """m as it is, or as codes of blocks with these largest magnitudes. A tensor-wise scale is left to the caller."""
    FORMAT: tl.constexpr = PLAN.format
    if not FORMAT.quantised:
        at = tiles.state_pointers(slot, slot.momentum, tile, tl.float32, BLOCK, IS_EVEN)
        tl.store(at, m, mask=tiles.mask_of(tile, BLOCK, IS_EVEN))
    else:
        code = lion.encode(m, lion.block_inverse(absmax, FORMAT)[:, None], lane, FORMAT)
        at, mask = tiles.code_pointers(slot, tile, PLAN, BLOCK, IS_EVEN)
        tl.store(at, tiles.pack(code, FORMAT.bits, ROWS, BLOCK), mask=mask)
        if not FORMAT.tensor_wise:
            tl.store(_scale_pointers(slot, tile, PLAN), lion.block_scale(absmax, FORMAT), mask=tile.length > 0)


@device_function
def _scale_pointers(slot, tile, PLAN: tl.constexpr):
    number = tile.block
    if PLAN.format.tensor_wise:
        number = number * 0
    return tiles.pointer(slot.scale, tl.float32, False) + number
