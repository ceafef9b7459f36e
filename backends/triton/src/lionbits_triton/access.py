"""Loads and stores of a tile: parameter, gradient and momentum, as float32 whatever they are held in."""

from __future__ import annotations

import triton.language as tl

from . import lanes, lion, tiles
from .lion import device_function


@device_function
def load_grad(slot, grad, tile, PATH: tl.constexpr):
    """The gradient as float32, not scaled; 0 where there is no element."""
    stored = tl.load(tiles.grad_pointers(slot, grad, tile, PATH), mask=tile.mask, other=0)
    return lion.widen(stored, PATH.grad_type)


@device_function
def load_param(slot, tile, PATH: tl.constexpr):
    """p as float32, whole where the state has what bfloat16 drops."""
    stored = tl.load(tiles.param_pointers(slot, tile, PATH), mask=tile.mask, other=0)
    if PATH.plan.param_rounding == "compensated":
        at = tiles.state_pointers(slot, slot.rest, tile, PATH.rest_type, PATH)
        return lion.join_master(stored, tl.load(at, mask=tile.mask, other=0), PATH)
    else:
        return lion.widen(stored, PATH.param_type)


@device_function
def store_param(p, drawn, slot, tile, PATH: tl.constexpr):
    """p', rounded once, and what that drops where the state has a place for it."""
    at = tiles.param_pointers(slot, tile, PATH)
    if PATH.plan.param_rounding == "nearest":
        tl.store(at, lion.narrow(p, PATH.param_type), mask=tile.mask)
    elif PATH.plan.param_rounding == "compensated":
        lane = lion.bits_of(p)  # of 32 bits nothing is rounded away, and no lane needed
        if PATH.plan.master_bits == 24:
            lane = lanes.draw(drawn, slot, tile, PATH)
        kept, rest = lion.split_master(p, lane, PATH)
        tl.store(at, kept, mask=tile.mask)
        tl.store(tiles.state_pointers(slot, slot.rest, tile, PATH.rest_type, PATH), rest, mask=tile.mask)
    else:
        tl.store(at, lion.narrow_unbiased(p, lanes.draw(drawn, slot, tile, PATH)), mask=tile.mask)


@device_function
def load_momentum(slot, tile, PATH: tl.constexpr):
    """float32 momentum; 0 where there is no element."""
    if not PATH.format.quantised:
        at = tiles.state_pointers(slot, slot.momentum, tile, tl.float32, PATH)
        return tl.load(at, mask=tile.mask, other=0.0)
    else:
        at, mask = tiles.code_pointers(slot, tile, PATH)
        code = tiles.unpack(tl.load(at, mask=mask, other=0), PATH)
        scale = tl.load(tiles.scale_pointers(slot, tile, PATH), mask=tile.length > 0, other=0.0)
        return lion.decode(code, scale[None, :, None], PATH)


@device_function
def store_momentum(m, absmax, lane, slot, tile, PATH: tl.constexpr):
    """m as it is, or as codes of blocks with these largest magnitudes. A tensor-wise scale is left to the caller."""
    if not PATH.format.quantised:
        at = tiles.state_pointers(slot, slot.momentum, tile, tl.float32, PATH)
        tl.store(at, m, mask=tile.mask)
    else:
        k = lion.encode(m, lion.block_inverse(absmax, PATH)[None, :, None], lane, PATH)
        at, mask = tiles.code_pointers(slot, tile, PATH)
        tl.store(at, tiles.pack(k, m, PATH), mask=mask)
        if not PATH.format.tensor_wise:
            tl.store(tiles.scale_pointers(slot, tile, PATH), lion.block_scale(absmax, PATH), mask=tile.length > 0)
