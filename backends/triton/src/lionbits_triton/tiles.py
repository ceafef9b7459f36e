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
    """A row of the device table, all int64. The strides are in elements; see :func:`element_pointers`."""

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
    row = block * 0
    if slot.row_blocks < last:  # a division is dear, and large tensors are mostly one row
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
def pointer(address, TYPE: tl.constexpr, IS_EVEN: tl.constexpr):
    """A pointer to elements of a Triton type."""
    at = address.to(tl.pointer_type(TYPE))
    if IS_EVEN:
        at = tl.multiple_of(at, 16)  # bytes
    return at


@device_function
def element_pointers(
    at, slot, tile, row, outer, middle, inner, ROWS: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr
):
    """(ROWS, BLOCK): pointers into a tensor that begins ``at`` and has strides (row, outer, middle, inner)."""
    base = tile.row * row + tile.begin
    j = tl.arange(0, BLOCK)[None, :]
    if IS_EVEN:
        base = tl.multiple_of(base, [EVEN])
        pointers = (at + base)[:, None] + j
    else:
        within = tl.zeros([ROWS, BLOCK], tl.int32) + j  # 32 bits are enough inside a row; the table sees to that
        if slot.inner > 0:
            base = tile.row * row
            column = tile.begin.to(tl.int32)[:, None] + j
            rest = column // slot.inner
            within = (rest // slot.middle) * outer.to(tl.int32) + (rest % slot.middle) * middle.to(tl.int32)
            within += (column % slot.inner) * inner.to(tl.int32)
        pointers = (at + base)[:, None] + within
    return pointers


@device_function
def param_pointers(slot, tile, TYPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    """Where the parameter's elements are."""
    at, s = pointer(slot.param, TYPE, IS_EVEN), slot
    return element_pointers(
        at, s, tile, s.param_row, s.param_outer, s.param_middle, s.param_inner, ROWS, BLOCK, IS_EVEN
    )


@device_function
def grad_pointers(
    slot, grad, tile, TYPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr
):
    """Where the gradient's elements are."""
    at, s = pointer(grad, TYPE, IS_EVEN), slot
    return element_pointers(at, s, tile, s.grad_row, s.grad_outer, s.grad_middle, s.grad_inner, ROWS, BLOCK, IS_EVEN)


@device_function
def state_pointers(slot, address, tile, TYPE: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    """Where the elements of state of the parameter's shape are; it is contiguous."""
    base = tile.row * slot.columns + tile.begin
    if IS_EVEN:
        base = tl.multiple_of(base, [EVEN])
    return (pointer(address, TYPE, IS_EVEN) + base)[:, None] + tl.arange(0, BLOCK)[None, :]


@device_function
def code_pointers(slot, tile, PLAN: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr):
    """(ROWS, BLOCK*BITS/8): where a tile's bytes are, and which there are. Rows begin at whole bytes.

    A thread takes as many codes at a time as it takes elements of other tensors, lest they have to be exchanged: 8 beside
    16-bit floats, but for 8-bit codes, of which 16 are 16 bytes (measured: 64 instructions per element, not 71).
    """
    DTYPE: tl.constexpr = PLAN.param_dtype
    GRAD_DTYPE: tl.constexpr = PLAN.grad_dtype
    BITS: tl.constexpr = PLAN.format.bits
    WIDE: tl.constexpr = BITS == 8 or (DTYPE == torch.float32 and GRAD_DTYPE == torch.float32)
    AT_A_TIME: tl.constexpr = EVEN if WIDE else EVEN // 2
    base = tile.row * ((slot.columns * BITS + 7) // 8) + tile.begin * BITS // 8
    j = tl.arange(0, BLOCK * BITS // 8)[None, :]
    mask = j < ((tile.length * BITS + 7) // 8)[:, None]
    if IS_EVEN:
        base = tl.multiple_of(base, [AT_A_TIME * BITS // 8])
        mask = tl.max_constancy(mask, [1, AT_A_TIME * BITS // 8])
    return (pointer(slot.momentum, tl.uint8, IS_EVEN) + base)[:, None] + j, mask


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
