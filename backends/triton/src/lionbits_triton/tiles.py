"""Where the elements of a tile lie: from (slot, blocks) to addresses, vectors and packed bytes.

A tile is some blocks of consecutive elements of a slot's rows; see :class:`lionbits_triton.path.Path`. All that differs
between slots stands in the device table, which :mod:`lionbits_table` writes.
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
    column: Any  # (parts, 1, width): of each element in its block
    mask: Any  # (parts, rows, width): which elements there are


@device_function
def columns(COUNT: tl.constexpr, PATH: tl.constexpr):
    """(parts, 1, COUNT): 0, 1, 2 and so on; COUNT to a part."""
    within = tl.arange(0, COUNT)[None, None, :]
    if PATH.parts > 1:
        within += (tl.arange(0, PATH.parts) * COUNT)[:, None, None]
    return within


@device_function
def tile_at(slot, first, last, PATH: tl.constexpr):
    """The blocks from ``first`` on; those from ``last`` on have no elements."""
    block = first + tl.arange(0, PATH.rows)
    row = block * 0
    if slot.row_blocks < last:  # a division is dear, and large tensors are mostly one row
        row = block // slot.row_blocks
    begin = (block - row * slot.row_blocks).to(tl.int64) * PATH.block
    length = tl.where(block < last, tl.minimum(slot.columns - begin, PATH.block), 0).to(tl.int32)
    column = columns(PATH.width, PATH)
    mask = column < length[None, :, None]
    if PATH.even:
        VECTOR: tl.constexpr = PATH.vector
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
    """(parts, rows, width): into a tensor that begins ``at`` and has strides (row, outer, middle, inner)."""
    base = tile.row * row + tile.begin
    j = tile.column
    if PATH.even:
        VECTOR: tl.constexpr = PATH.vector
        pointers = (at + tl.multiple_of(base, [VECTOR]))[None, :, None] + j
    else:
        within = tl.full([PATH.parts, PATH.rows, PATH.width], 0, tl.int32) + j  # 32 bits do; the table sees to that
        if slot.inner > 0:
            base = tile.row * row
            column = tile.begin.to(tl.int32)[None, :, None] + j
            rest = column // slot.inner
            within = (rest // slot.middle) * outer.to(tl.int32) + (rest % slot.middle) * middle.to(tl.int32)
            within += (column % slot.inner) * inner.to(tl.int32)
        pointers = (at + base)[None, :, None] + within
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
        VECTOR: tl.constexpr = PATH.vector
        base = tl.multiple_of(base, [VECTOR])
    return (pointer(address, TYPE, PATH) + base)[None, :, None] + tile.column


@device_function
def code_pointers(slot, tile, PATH: tl.constexpr):
    """(parts, rows, words of a part): where a tile's words are, and which there are. Rows begin at whole bytes."""
    base = tile.row * ((slot.columns * PATH.format.bits + 7) // 8) + tile.begin * PATH.format.bits // 8
    j = columns(PATH.width * PATH.format.bits // PATH.word, PATH)
    mask = j < ((tile.length * PATH.format.bits + PATH.word - 1) // PATH.word)[None, :, None]
    if PATH.even:
        BYTES: tl.constexpr = PATH.vector * PATH.format.bits // 8
        WORDS: tl.constexpr = PATH.vector * PATH.format.bits // PATH.word
        base = tl.multiple_of(base, [BYTES])
        mask = tl.max_constancy(mask, [1, 1, WORDS])
    at = (pointer(slot.momentum, tl.uint8, PATH) + base).to(tl.pointer_type(PATH.word_type))
    return at[None, :, None] + j, mask


@device_function
def scale_pointers(slot, tile, PATH: tl.constexpr):
    """(rows,): where the scales of the blocks are."""
    number = tile.block
    if PATH.format.tensor_wise:
        number = number * 0
    return slot.scale.to(tl.pointer_type(tl.float32)) + number


# --- packing --------------------------------------------------------------------------------------------


@device_function
def shifts(BITS: tl.constexpr, WORD: tl.constexpr):
    """Where each number of BITS stands in a word; number 0 in the lowest bits."""
    return (tl.arange(0, WORD // BITS) * BITS).to(tl.uint32)[None, None, None, :]


@device_function
def unpack(words, PATH: tl.constexpr):
    """uint32 codes (parts, rows, width) of words."""
    BITS: tl.constexpr = PATH.format.bits
    code = (words.to(tl.uint32)[:, :, :, None] >> shifts(BITS, PATH.word)) & ((1 << BITS) - 1)
    return tl.reshape(code, (PATH.parts, PATH.rows, PATH.width))


@device_function
def pack(k, m, PATH: tl.constexpr):
    """Words of codes: magnitudes k, and the signs of m where k > 0, which is found for all codes of a word at once."""
    BITS: tl.constexpr = PATH.format.bits
    EACH: tl.constexpr = PATH.word // BITS
    MAGNITUDES: tl.constexpr = ((1 << PATH.word) - 1) // ((1 << BITS) - 1) * ((1 << (BITS - 1)) - 1)  # no sign bits
    signed = tl.reshape(k | (lion.bits_of(m) >> 31) << (BITS - 1), (PATH.parts, PATH.rows, PATH.width // EACH, EACH))
    words = tl.sum(signed << shifts(BITS, PATH.word), 3)
    positive = (words & MAGNITUDES) + MAGNITUDES  # its sign bits say k > 0; nothing is carried from code to code
    return (words & (positive | MAGNITUDES)).to(PATH.word_type)
