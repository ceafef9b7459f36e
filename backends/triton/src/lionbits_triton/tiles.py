"""Addresses of the elements of a tile: from (slot, blocks) to pointers, vectors and packed bytes.

A tile is some blocks of consecutive elements of a slot's rows; see :class:`lionbits_triton.variant.KernelVariant`. All
differences between slots are in the device table, which :mod:`lionbits_table` writes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton.language as tl

import lionbits_table
from lionbits_table import Record

from . import lion
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
        residual=tl.load(row + 3),
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
    """Some blocks: the number of each in its slot, its row, its first column, and its number of elements."""

    block: Any
    row: Any
    begin: Any
    length: Any
    column: Any  # (parts, 1, width): of each element in its block
    mask: Any  # (parts, rows, width): which elements there are


@device_function
def columns(COUNT: tl.constexpr, VARIANT: tl.constexpr):
    """(parts, 1, COUNT): 0, 1, 2 and so on; COUNT to a part."""
    within = tl.arange(0, COUNT)[None, None, :]
    if VARIANT.parts > 1:
        within += (tl.arange(0, VARIANT.parts) * COUNT)[:, None, None]
    return within


@device_function
def tile_at(slot, first, last, VARIANT: tl.constexpr):
    """The blocks from ``first`` on; those from ``last`` on have no elements."""
    block = first + tl.arange(0, VARIANT.rows)
    row = block * 0
    if slot.row_blocks < last:  # a division is dear, and large tensors are mostly one row
        row = block // slot.row_blocks
    begin = (block - row * slot.row_blocks).to(tl.int64) * VARIANT.block
    length = tl.where(block < last, tl.minimum(slot.columns - begin, VARIANT.block), 0).to(tl.int32)
    column = columns(VARIANT.width, VARIANT)
    mask = column < length[None, :, None]
    if VARIANT.even:
        VECTOR: tl.constexpr = VARIANT.vector
        mask = tl.max_constancy(mask, [1, 1, VECTOR])
    return Tile(block=block, row=row.to(tl.int64), begin=begin, length=length, column=column, mask=mask)


@device_function
def block_max(values):
    """(rows,): the largest of each block."""
    return tl.max(tl.max(values, 0), 1)


@device_function
def block_sum(values):
    """(rows,): the sum of each block."""
    return tl.sum(tl.sum(values, 0), 1)


# --- pointers -------------------------------------------------------------------------------------------


@device_function
def pointer(address, TYPE: tl.constexpr, VARIANT: tl.constexpr):
    """A pointer to elements of a Triton type; to the bits of 16-bit floats, as the interpreter miscomputes those."""
    if TYPE == tl.bfloat16 or TYPE == tl.float16:
        at = address.to(tl.pointer_type(tl.uint16))
    else:
        at = address.to(tl.pointer_type(TYPE))
    if VARIANT.even:
        at = tl.multiple_of(at, EVEN)
    return at


@device_function
def element_pointers(at, slot, tile, row, outer, middle, inner, VARIANT: tl.constexpr):
    """(parts, rows, width): into a tensor that begins ``at`` and has strides (row, outer, middle, inner)."""
    base = tile.row * row + tile.begin
    j = tile.column
    if VARIANT.even:
        VECTOR: tl.constexpr = VARIANT.vector
        pointers = (at + tl.multiple_of(base, [VECTOR]))[None, :, None] + j
    else:
        within = (
            tl.full([VARIANT.parts, VARIANT.rows, VARIANT.width], 0, tl.int32) + j
        )  # 32 bits do; the table sees to that
        if slot.inner > 0:
            base = tile.row * row
            column = tile.begin.to(tl.int32)[None, :, None] + j
            residual = column // slot.inner
            within = (residual // slot.middle) * outer.to(tl.int32) + (residual % slot.middle) * middle.to(tl.int32)
            within += (column % slot.inner) * inner.to(tl.int32)
        pointers = (at + base)[None, :, None] + within
    return pointers


@device_function
def param_pointers(slot, tile, VARIANT: tl.constexpr):
    """Pointers to the parameter's elements."""
    at, s = pointer(slot.param, VARIANT.param_type, VARIANT), slot
    return element_pointers(at, slot, tile, s.param_row, s.param_outer, s.param_middle, s.param_inner, VARIANT)


@device_function
def grad_pointers(slot, grad, tile, VARIANT: tl.constexpr):
    """Pointers to the gradient's elements."""
    at, s = pointer(grad, VARIANT.grad_type, VARIANT), slot
    return element_pointers(at, slot, tile, s.grad_row, s.grad_outer, s.grad_middle, s.grad_inner, VARIANT)


@device_function
def state_pointers(slot, address, tile, TYPE: tl.constexpr, VARIANT: tl.constexpr):
    """Pointers to the elements of contiguous state of the parameter's shape."""
    base = tile.row * slot.columns + tile.begin
    if VARIANT.even:
        VECTOR: tl.constexpr = VARIANT.vector
        base = tl.multiple_of(base, [VECTOR])
    return (pointer(address, TYPE, VARIANT) + base)[None, :, None] + tile.column


@device_function
def code_pointers(slot, tile, VARIANT: tl.constexpr):
    """Pointers to a tile's words (parts, rows, words of a part), and a mask. Rows begin at whole bytes."""
    base = tile.row * ((slot.columns * VARIANT.format.bits + 7) // 8) + tile.begin * VARIANT.format.bits // 8
    j = columns(VARIANT.width * VARIANT.format.bits // VARIANT.word, VARIANT)
    mask = j < ((tile.length * VARIANT.format.bits + VARIANT.word - 1) // VARIANT.word)[None, :, None]
    if VARIANT.even:
        BYTES: tl.constexpr = VARIANT.vector * VARIANT.format.bits // 8
        WORDS: tl.constexpr = VARIANT.vector * VARIANT.format.bits // VARIANT.word
        base = tl.multiple_of(base, [BYTES])
        mask = tl.max_constancy(mask, [1, 1, WORDS])
    at = (pointer(slot.momentum, tl.uint8, VARIANT) + base).to(tl.pointer_type(VARIANT.word_type))
    return at[None, :, None] + j, mask


@device_function
def scale_pointers(slot, tile, VARIANT: tl.constexpr):
    """Pointers to the scales of the blocks (rows,)."""
    number = tile.block
    if VARIANT.format.tensor_wise:
        number = number * 0
    return slot.scale.to(tl.pointer_type(tl.float32)) + number


# --- packing --------------------------------------------------------------------------------------------


@device_function
def shifts(BITS: tl.constexpr, WORD: tl.constexpr):
    """Bit offset of each number of BITS in a word; number 0 is in the lowest bits."""
    return (tl.arange(0, WORD // BITS) * BITS).to(tl.uint32)[None, None, None, :]


@device_function
def unpack(words, VARIANT: tl.constexpr):
    """uint32 codes (parts, rows, width) of words."""
    BITS: tl.constexpr = VARIANT.format.bits
    code = (words.to(tl.uint32)[:, :, :, None] >> shifts(BITS, VARIANT.word)) & ((1 << BITS) - 1)
    return tl.reshape(code, (VARIANT.parts, VARIANT.rows, VARIANT.width))


@device_function
def pack(k, m, VARIANT: tl.constexpr):
    """Pack magnitudes k, with the signs of m where k > 0, into words. Signs are found for a whole word at once."""
    BITS: tl.constexpr = VARIANT.format.bits
    EACH: tl.constexpr = VARIANT.word // BITS
    MAGNITUDES: tl.constexpr = ((1 << VARIANT.word) - 1) // ((1 << BITS) - 1) * ((1 << (BITS - 1)) - 1)  # no sign bits
    signed = tl.reshape(
        k | (lion.bits_of(m) >> 31) << (BITS - 1), (VARIANT.parts, VARIANT.rows, VARIANT.width // EACH, EACH)
    )
    words = tl.sum(signed << shifts(BITS, VARIANT.word), 3)
    positive = (words & MAGNITUDES) + MAGNITUDES  # its sign bits say k > 0; nothing is carried from code to code
    return (words & (positive | MAGNITUDES)).to(VARIANT.word_type)
