"""Where the elements of a tile lie: from (slot, blocks) to addresses, vectors and packed bytes.

A tile is some blocks of consecutive elements of a slot's rows; see :class:`lionbits_triton.path.Path`. All that differs
between slots stands in the device table, which :mod:`lionbits_table` writes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton.language as tl

import lionbits_table
from lionbits_table import Record

from .lion import device_function

EVEN: tl.constexpr = tl.constexpr(lionbits_table.EVEN)


@device_function
def load_slot(table, j):
    """Row j of the device table."""
    row = table + j * 20
    return Record(
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
    """Some blocks: the number of each in its slot, its row, its first column, and how many elements it has."""

    block: Any
    row: Any
    begin: Any
    length: Any


@device_function
def tile_at(slot, first, last, PATH: tl.constexpr):
    """The blocks from ``first`` on; those from ``last`` on have no elements."""
    block = first + tl.arange(0, PATH.rows)
    row = block * 0
    if slot.row_blocks < last:  # a division is dear, and large tensors are mostly one row
        row = block // slot.row_blocks
    begin = (block - row * slot.row_blocks).to(tl.int64) * PATH.block
    length = tl.where(block < last, tl.minimum(slot.columns - begin, PATH.block), 0).to(tl.int32)
    return Tile(block=block, row=row.to(tl.int64), begin=begin, length=length)


@device_function
def mask_of(tile, PATH: tl.constexpr):
    """(rows, block): which elements there are."""
    mask = tl.arange(0, PATH.block)[None, :] < tile.length[:, None]
    if PATH.even:
        mask = tl.max_constancy(mask, [1, EVEN])
    return mask


# --- pointers -------------------------------------------------------------------------------------------


@device_function
def pointer(address, TYPE: tl.constexpr, PATH: tl.constexpr):
    """A pointer to elements of a Triton type; to the bits of 16-bit floats, as the interpreter miscomputes those."""
    if TYPE == tl.bfloat16 or TYPE == tl.float16:
        at = address.to(tl.pointer_type(tl.uint16))
    else:
        at = address.to(tl.pointer_type(TYPE))
    if PATH.even:
        at = tl.multiple_of(at, EVEN)
    return at


@device_function
def element_pointers(at, slot, tile, row, outer, middle, inner, PATH: tl.constexpr):
    """(rows, block): into a tensor that begins ``at`` and has strides (row, outer, middle, inner)."""
    base = tile.row * row + tile.begin
    j = tl.arange(0, PATH.block)[None, :]
    if PATH.even:
        pointers = (at + tl.multiple_of(base, [EVEN]))[:, None] + j
    else:
        within = tl.full([PATH.rows, PATH.block], 0, tl.int32) + j  # 32 bits do inside a row; the table sees to that
        if slot.inner > 0:
            base = tile.row * row
            column = tile.begin.to(tl.int32)[:, None] + j
            rest = column // slot.inner
            within = (rest // slot.middle) * outer.to(tl.int32) + (rest % slot.middle) * middle.to(tl.int32)
            within += (column % slot.inner) * inner.to(tl.int32)
        pointers = (at + base)[:, None] + within
    return pointers


@device_function
def param_pointers(slot, tile, PATH: tl.constexpr):
    """Where the parameter's elements are."""
    at, s = pointer(slot.param, PATH.param_type, PATH), slot
    return element_pointers(at, slot, tile, s.param_row, s.param_outer, s.param_middle, s.param_inner, PATH)


@device_function
def grad_pointers(slot, grad, tile, PATH: tl.constexpr):
    """Where the gradient's elements are."""
    at, s = pointer(grad, PATH.grad_type, PATH), slot
    return element_pointers(at, slot, tile, s.grad_row, s.grad_outer, s.grad_middle, s.grad_inner, PATH)


@device_function
def state_pointers(slot, address, tile, TYPE: tl.constexpr, PATH: tl.constexpr):
    """Where the elements of state of the parameter's shape are; it is contiguous."""
    base = tile.row * slot.columns + tile.begin
    if PATH.even:
        base = tl.multiple_of(base, [EVEN])
    return (pointer(address, TYPE, PATH) + base)[:, None] + tl.arange(0, PATH.block)[None, :]


@device_function
def code_pointers(slot, tile, PATH: tl.constexpr):
    """(rows, code_bytes): where a tile's bytes are, and which there are. Rows begin at whole bytes."""
    base = tile.row * ((slot.columns * PATH.format.bits + 7) // 8) + tile.begin * PATH.format.bits // 8
    j = tl.arange(0, PATH.code_bytes)[None, :]
    mask = j < ((tile.length * PATH.format.bits + 7) // 8)[:, None]
    if PATH.even:
        BYTES: tl.constexpr = PATH.even_bytes
        base = tl.multiple_of(base, [BYTES])
        mask = tl.max_constancy(mask, [1, BYTES])
    return (pointer(slot.momentum, tl.uint8, PATH) + base)[:, None] + j, mask


@device_function
def scale_pointers(slot, tile, PATH: tl.constexpr):
    """(rows,): where the scales of the blocks are."""
    number = tile.block
    if PATH.format.tensor_wise:
        number = number * 0
    return slot.scale.to(tl.pointer_type(tl.float32)) + number


# --- packing --------------------------------------------------------------------------------------------


@device_function
def unpack(packed, PATH: tl.constexpr):
    """uint32 codes (rows, block) of bytes; element 0 in the lowest bits."""
    code = packed.to(tl.uint32)
    if PATH.format.bits == 4:
        code = tl.interleave(code & 15, code >> 4)
    if PATH.format.bits == 2:
        even = tl.interleave(code & 3, (code >> 4) & 3)
        odd = tl.interleave((code >> 2) & 3, code >> 6)
        code = tl.interleave(even, odd)
    return code


@device_function
def pack(code, PATH: tl.constexpr):
    """The inverse of :func:`unpack`."""
    if PATH.format.bits == 4:
        even, odd = tl.split(tl.reshape(code, (PATH.rows, PATH.block // 2, 2)))
        code = even | (odd << 4)
    if PATH.format.bits == 2:
        even, odd = tl.split(tl.reshape(code, (PATH.rows, PATH.block // 2, 2)))
        even, odd = tl.split(tl.reshape(even | (odd << 2), (PATH.rows, PATH.block // 4, 2)))
        code = even | (odd << 4)
    return code.to(tl.uint8)
