"""Narrow codes to bytes and back, eight at a time: shifts of 64-bit words, which vectorise where single codes do not.

A word's bytes have one code each; two neighbours come to share one, then the bytes that are left move together. That is
little-endian, as every machine is that torch has a C++ compiler for.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .compiling import Compiled


def pack(codes: Tensor, packed: Tensor, bits: int) -> None:
    """uint8 codes (n, width) to bytes (n, width * bits / 8); width is a multiple of 32."""
    while bits < 8:
        narrower = packed if bits == 4 else codes.new_empty(len(codes), codes.shape[1] // 2)
        _narrow(bits)(codes.view(torch.int64), narrower.view(torch.int32))
        codes, bits = narrower, 2 * bits


def unpack(packed: Tensor, codes: Tensor, bits: int) -> None:
    """The inverse of :func:`pack`."""
    held = 8
    while held > bits:
        held //= 2
        wider = codes if held == bits else packed.new_empty(len(packed), 2 * packed.shape[1])
        _widen(held)(packed.view(torch.int32), wider.view(torch.int64))
        packed = wider


@functools.cache
def _narrow(bits: int) -> Compiled:
    def narrow(words: Tensor, halves: Tensor) -> None:
        x = (words | (words >> (8 - bits))) & 0x00FF00FF00FF00FF
        x = (x | (x >> 8)) & 0x0000FFFF0000FFFF
        halves.copy_((x | (x >> 16)).to(torch.int32))

    return Compiled(narrow, f"{bits}-bit codes to bytes")


@functools.cache
def _widen(bits: int) -> Compiled:
    mask = 0x0101010101010101 * ((1 << bits) - 1)

    def widen(halves: Tensor, words: Tensor) -> None:
        x = halves.to(torch.int64) & 0xFFFFFFFF
        x = (x | (x << 16)) & 0x0000FFFF0000FFFF
        x = (x | (x << 8)) & 0x00FF00FF00FF00FF
        words.copy_((x | (x << (8 - bits))) & mask)

    return Compiled(widen, f"bytes to {bits}-bit codes")
