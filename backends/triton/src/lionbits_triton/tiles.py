"""Where the elements of a tile lie: from (slot, blocks) to addresses, vectors and packed bytes.

A tile is ROWS blocks of BLOCK consecutive elements of a slot's rows. All that differs between slots stands in the
device table, which ``table.py`` writes. An EVEN tile takes the fast path: its rows begin at multiples of 16 bytes and
begin and end at multiples of 16 elements, so that a thread moves 16 bytes at a time. The other path serves tails,
misaligned views and any strides, element by element. Both compute the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl

from .lion import device_function

EVEN: tl.constexpr = tl.constexpr(16)  # what the elements of EVEN rows come in multiples of


class Slot(NamedTuple):
    """A row of the device table, all int64. The strides are in elements; see :func:`offsets`."""

    param: Any  # addresses
    momentum: Any  # exp_avg, or its codes
    scale: Any
    rest: Any
    columns: Any
    row_blocks: Any  # blocks in a row
    even_blocks: Any  # this many blocks, from the first on, are EVEN if the gradient is
    index: Any
    start: Any
    pitch: Any
    param_row: Any
    param_outer: Any
    param_middle: Any
    param_inner: Any
    grad_row: Any
    grad_outer: Any
    grad_middle: Any
    grad_inner: Any
    middle: Any  # sizes of the two inner dimensions; inner = 0: columns are consecutive in both tensors
    inner: Any


@device_function
def load_slot(table, j):
    """Row j of the device table."""
    row = table + j * 20
    return Slot(
        param=tl.load(row),
        momentum=tl.load(row + 1),
        scale=tl.load(row + 2),
        rest=tl.load(row + 3),
        columns=tl.load(row + 4),
        row_blocks=tl.load(row + 5).to(tl.int32),
        even_blocks=tl.load(row + 6).to(tl.int32),
        index=tl.load(row + 7).to(tl.uint32),
        start=tl.load(row + 8),
        pitch=tl.load(row + 9),
        param_row=tl.load(row + 10),
        param_outer=tl.load(row + 11),
        param_middle=tl.load(row + 12),
        param_inner=tl.load(row + 13),
        grad_row=tl.load(row + 14),
        grad_outer=tl.load(row + 15),
        grad_middle=tl.load(row + 16),
        grad_inner=tl.load(row + 17),
        middle=tl.load(row + 18).to(tl.int32),
        inner=tl.load(row + 19).to(tl.int32),
    )


class Tile(NamedTuple):
    """ROWS blocks: the number of each in its slot, its row, its first column, and how many elements it has."""

    block: Any
    row: Any
    begin: Any
    length: Any


@device_function
def tile_at(slot, first, last, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The blocks from ``first`` on; those from ``last`` on have no elements."""
    block = first + tl.arange(0, ROWS)
    row = block // slot.row_blocks
    begin = (block - row * slot.row_blocks).to(tl.int64) * BLOCK
    length = tl.where(block < last, tl.minimum(slot.columns - begin, BLOCK), 0).to(tl.int32)
    return Tile(block=block, row=row.to(tl.int64), begin=begin, length=length)


@device_function
def mask_of(tile, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    """(ROWS, BLOCK): which elements there are."""
    mask = tl.arange(0, BLOCK)[None, :] < tile.length[:, None]
    if IS_EVEN:
        mask = tl.max_constancy(mask, [1, EVEN])
    return mask


@device_function
def offsets(slot, tile, row, outer, middle, inner, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    """(ROWS, BLOCK): offsets in a tensor with strides (row, outer, middle, inner)."""
    base = tile.row * row
    j = tl.arange(0, BLOCK)[None, :]
    if IS_EVEN:
        place = tl.multiple_of(base + tile.begin, [EVEN])[:, None] + j
    else:
        column = tile.begin[:, None] + j
        within = column
        if slot.inner > 0:
            short = column.to(tl.int32)
            rest = short // slot.inner
            within = (rest // slot.middle) * outer + (rest % slot.middle) * middle + (short % slot.inner) * inner
        place = base[:, None] + within
    return place


@device_function
def param_offsets(slot, tile, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    """Offsets in the parameter."""
    return offsets(
        slot, tile, slot.param_row, slot.param_outer, slot.param_middle, slot.param_inner, BLOCK, IS_EVEN
    )


@device_function
def grad_offsets(slot, tile, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    """Offsets in the gradient."""
    return offsets(slot, tile, slot.grad_row, slot.grad_outer, slot.grad_middle, slot.grad_inner, BLOCK, IS_EVEN)


@device_function
def state_offsets(slot, tile, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    """Offsets in state of the parameter's shape, which is contiguous."""
    base = tile.row * slot.columns + tile.begin
    if IS_EVEN:
        base = tl.multiple_of(base, [EVEN])
    return base[:, None] + tl.arange(0, BLOCK)[None, :]


@device_function
def code_offsets(slot, tile, BITS: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    """(ROWS, BLOCK*BITS/8): offsets of a tile's bytes, and which there are. Rows begin at whole bytes."""
    base = tile.row * ((slot.columns * BITS + 7) // 8) + tile.begin * BITS // 8
    j = tl.arange(0, BLOCK * BITS // 8)[None, :]
    mask = j < ((tile.length * BITS + 7) // 8)[:, None]
    if IS_EVEN:
        base = tl.multiple_of(base, [EVEN * BITS // 8])
        mask = tl.max_constancy(mask, [1, EVEN * BITS // 8])
    return base[:, None] + j, mask


@device_function
def pointer(address, TYPE: tl.constexpr, IS_EVEN: tl.constexpr):
    """A pointer to elements of a Triton type."""
    at = address.to(tl.pointer_type(TYPE))
    if IS_EVEN:
        at = tl.multiple_of(at, 16)
    return at


@device_function
def float_pointer(address, DTYPE: tl.constexpr, IS_EVEN: tl.constexpr):
    """A pointer to float32, or to the bits of 16-bit floats (which the interpreter cannot compute with)."""
    if DTYPE == torch.float32:
        return pointer(address, tl.float32, IS_EVEN)
    else:
        return pointer(address, tl.uint16, IS_EVEN)


@device_function
def unpack(packed, BITS: tl.constexpr):
    """uint32 codes (ROWS, BLOCK) of bytes; element 0 in the lowest bits."""
    code = packed.to(tl.uint32)
    if BITS == 4:
        code = tl.interleave(code & 15, code >> 4)
    if BITS == 2:
        even = tl.interleave(code & 3, (code >> 4) & 3)
        odd = tl.interleave((code >> 2) & 3, code >> 6)
        code = tl.interleave(even, odd)
    return code


@device_function
def _halves(code, ROWS: tl.constexpr, LENGTH: tl.constexpr):
    return tl.split(tl.reshape(code, (ROWS, LENGTH // 2, 2)))


@device_function
def pack(code, BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The inverse of :func:`unpack`."""
    if BITS == 4:
        even, odd = _halves(code, ROWS, BLOCK)
        code = even | (odd << 4)
    if BITS == 2:
        even, odd = _halves(code, ROWS, BLOCK)
        even, odd = _halves(even | (odd << 2), ROWS, BLOCK // 2)
        code = even | (odd << 4)
    return code.to(tl.uint8)
