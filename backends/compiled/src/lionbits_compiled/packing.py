"""Packed codes to separate codes and back: one to a byte, or to a word if torch's vectors are slow with bytes.

Four bytes of state, as one word, are spread over the eight bytes of a word twice as wide, or joined again. Such words,
too, are passed as floats, see :func:`.functions.bitcast`. Their byte order is little-endian, as on every
machine that torch has a C++ compiler for.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .compiling import Compiled
from .functions import WORD
from .scratch import Scratch

#: Dtype of separate codes: bytes, or words. With AVX-512 torch masks its loads and stores; elsewhere
#: copies that only widen and narrow cost a tenth of what bytes do.
CODES = torch.uint8 if torch.backends.cpu.get_cpu_capability() == "AVX512" else WORD

#: Dtype as which words of 64 bits are passed.
LONG_WORD = torch.float64


def unpack(packed: Tensor, bits: int, scratch: Scratch) -> Tensor:
    """Return separate codes, (n, width): uint8, which 8-bit state already is, or :func:`.functions.bitcast`.

    Args:
        packed: uint8 (n, width * bits / 8); width is a multiple of 32.
        bits: 8, 4 or 2.
        scratch: where they are, unless they are the state.
    """
    codes, held = packed, 8
    while held > bits:
        held //= 2
        halves = scratch.take(f"{held}-bit codes", torch.uint8, len(codes), 2 * codes.shape[1])
        _spread(held)(codes.view(WORD), halves.view(LONG_WORD))
        codes = halves
    if CODES is torch.uint8:
        return codes
    words = scratch.take("words", WORD, *codes.shape)
    words.view(torch.int32).copy_(codes)
    return words


def pack(codes: Tensor, packed: Tensor, bits: int, scratch: Scratch) -> None:
    """Pack codes as :func:`unpack` returned them into state."""
    if codes.dtype == WORD:
        narrow = packed if bits == 8 else scratch.take(f"{bits}-bit codes", torch.uint8, *codes.shape)
        narrow.copy_(codes.view(torch.int32))
        codes = narrow
    while bits < 8:
        held, bits = bits, 2 * bits
        size = len(codes), codes.shape[1] // 2
        joined = packed if bits == 8 else scratch.take(f"{bits}-bit codes", torch.uint8, *size)
        _join(held)(codes.view(LONG_WORD), joined.view(WORD))
        codes = joined


#: Masks of 64 bits: every other 16, and every other 8.
_SIXTEENS, _EIGHTS = 0x0000FFFF0000FFFF, 0x00FF00FF00FF00FF


@functools.cache
def _spread(bits: int) -> Compiled:
    """Return a function that spreads bytes of two codes to bytes of one, of so many bits."""

    def spread(packed: Tensor, codes: Tensor) -> None:
        word = packed.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
        word = (word | (word << 16)) & _SIXTEENS
        word = (word | (word << 8)) & _EIGHTS
        word = (word | (word << (8 - bits))) & (0x0101010101010101 * ((1 << bits) - 1))
        codes.copy_(word.view(LONG_WORD))

    return Compiled(spread, f"unpacking to {bits} bits")


@functools.cache
def _join(bits: int) -> Compiled:
    """The inverse of :func:`_spread`."""

    def join(codes: Tensor, packed: Tensor) -> None:
        word = codes.view(torch.int64)
        word = (word | (word >> (8 - bits))) & _EIGHTS
        word = (word | (word >> 8)) & _SIXTEENS
        packed.copy_((word | (word >> 16)).to(torch.int32).view(WORD))

    return Compiled(join, f"packing {bits} bits")
