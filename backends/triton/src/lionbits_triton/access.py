"""Loads and stores of a tile: parameter, gradient and momentum, as float32 whatever they are held in."""

from __future__ import annotations

import triton.language as tl

from . import dither, lion, tiles
from .lion import device_function


@device_function
def load_grad(slot, grad, tile, VARIANT: tl.constexpr):
    """The gradient as float32, not scaled; 0 where there is no element."""
    stored = tl.load(tiles.grad_pointers(slot, grad, tile, VARIANT), mask=tile.mask, other=0)
    return lion.widen(stored, VARIANT.grad_type)


@device_function
def load_param(slot, tile, VARIANT: tl.constexpr):
    """p as float32, complete if the state has the residual of bfloat16."""
    stored = tl.load(tiles.param_pointers(slot, tile, VARIANT), mask=tile.mask, other=0)
    if VARIANT.plan.param_rounding == "compensated":
        at = tiles.state_pointers(slot, slot.residual, tile, VARIANT.residual_type, VARIANT)
        return lion.join_master(stored, tl.load(at, mask=tile.mask, other=0), VARIANT)
    else:
        return lion.widen(stored, VARIANT.param_type)


@device_function
def store_param(p, drawn, slot, tile, VARIANT: tl.constexpr):
    """Store p', rounded once, and the residual if the state has one."""
    at = tiles.param_pointers(slot, tile, VARIANT)
    if VARIANT.plan.param_rounding == "nearest":
        tl.store(at, lion.narrow(p, VARIANT.param_type), mask=tile.mask)
    elif VARIANT.plan.param_rounding == "compensated":
        noise = lion.bits_of(p)  # of 32 bits nothing is rounded away, and no noise needed
        if VARIANT.plan.master_bits == 24:
            noise = dither.draw(drawn, slot, tile, VARIANT)
        kept, residual = lion.split_master(p, noise, VARIANT)
        tl.store(at, kept, mask=tile.mask)
        tl.store(
            tiles.state_pointers(slot, slot.residual, tile, VARIANT.residual_type, VARIANT), residual, mask=tile.mask
        )
    else:
        tl.store(at, lion.narrow_unbiased(p, dither.draw(drawn, slot, tile, VARIANT)), mask=tile.mask)


@device_function
def load_momentum(slot, tile, VARIANT: tl.constexpr):
    """float32 momentum; 0 where there is no element."""
    if not VARIANT.format.quantised:
        at = tiles.state_pointers(slot, slot.momentum, tile, tl.float32, VARIANT)
        return tl.load(at, mask=tile.mask, other=0.0)
    else:
        at, mask = tiles.code_pointers(slot, tile, VARIANT)
        code = tiles.unpack(tl.load(at, mask=mask, other=0), VARIANT)
        scale = tl.load(tiles.scale_pointers(slot, tile, VARIANT), mask=tile.length > 0, other=0.0)
        return lion.decode(code, scale[None, :, None], VARIANT)


@device_function
def store_momentum(m, absmax, noise, slot, tile, VARIANT: tl.constexpr):
    """Store m as it is, or as codes of blocks with these largest magnitudes; the caller stores a tensor-wise scale."""
    if not VARIANT.format.quantised:
        at = tiles.state_pointers(slot, slot.momentum, tile, tl.float32, VARIANT)
        tl.store(at, m, mask=tile.mask)
    else:
        k = lion.encode(m, lion.block_inverse(absmax, VARIANT)[None, :, None], noise, VARIANT)
        at, mask = tiles.code_pointers(slot, tile, VARIANT)
        tl.store(at, tiles.pack(k, m, VARIANT), mask=mask)
        if not VARIANT.format.tensor_wise:
            tl.store(tiles.scale_pointers(slot, tile, VARIANT), lion.block_scale(absmax, VARIANT), mask=tile.length > 0)
