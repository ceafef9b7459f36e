"""Rounding noise of a tile: one code path for three roundings, which differ in numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton.language as tl

from . import tiles
from .lion import PARAMETER, STATE, device_function, fmix32, salt


class Dither(NamedTuple):
    """Inputs of the noise of a slot. All uint32."""

    salt: Any
    phase: Any  # how far the golden-ratio sequence of "dithered" has come
    drawn: Any  # 0xFFFF; 0 for "nearest"
    fixed: Any  # 0; half of what is dropped for "nearest"


@device_function
def state_noise(index, step, seed_low, seed_high, stochastic, nearest):
    """Noise of the momentum; its rounding is a number, not a kernel of its own."""
    salted = salt(seed_low, seed_high, index, STATE)
    return Dither(
        salt=tl.where(stochastic != 0, fmix32(salted ^ (step * 0x9E3779B9)), salted),
        phase=tl.where(stochastic != 0, 0, step * 40503),
        drawn=tl.where(nearest != 0, 0, 0xFFFF).to(tl.uint32),
        fixed=tl.where(nearest != 0, 0x8000, 0).to(tl.uint32),
    )


@device_function
def param_noise(index, step, seed_low, seed_high, VARIANT: tl.constexpr):
    """Noise of the parameter."""
    salted = salt(seed_low, seed_high, index, PARAMETER)
    moved = step * 40503
    if VARIANT.plan.param_rounding == "stochastic":
        salted = fmix32(salted ^ (step * 0x9E3779B9))
        moved = moved * 0
    return Dither(salt=salted, phase=moved, drawn=moved * 0 + 0xFFFF, fixed=moved * 0)


@device_function
def draw(dither, slot, tile, VARIANT: tl.constexpr):
    """uint32 (parts, rows, width) in 0..65535; elements 2i and 2i + 1 of a row share a hash."""
    first = (slot.start + tile.row * slot.pitch + tile.begin) >> 1
    low = first.to(tl.uint32)[None, :, None] + tiles.columns(VARIANT.width // 2, VARIANT).to(tl.uint32)
    if VARIANT.even:
        high = (slot.start >> 33).to(tl.uint32)  # of every element; the table sees to that
    else:
        carried = low < first.to(tl.uint32)[None, :, None]
        high = (first >> 32).to(tl.uint32)[None, :, None] + carried.to(tl.uint32)
    h = fmix32(low ^ fmix32(high ^ dither.salt))
    even = ((h + dither.phase) & dither.drawn) | dither.fixed
    odd = (((h >> 16) + dither.phase) & dither.drawn) | dither.fixed
    return tl.interleave(even, odd)
