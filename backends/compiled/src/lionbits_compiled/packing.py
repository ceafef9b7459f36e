"""Codes in state to codes each by itself and back: one a byte, or one a word where torch's vectors are slow with bytes.

Nothing here is compiled: copies that widen or narrow, and shifts of whole bytes, eager torch does at the speed of the
cache. Two neighbours, seen as one int16, come to share its lower byte. That is little-endian, as every machine is that
torch has a C++ compiler for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .functions import WORD
from .scratch import Scratch

#: What codes come in to be computed with: bytes, or words. With AVX-512 torch masks what it loads and stores; elsewhere
#: copies that do nothing but widen and narrow cost a tenth of what bytes do.
CODES = torch.uint8 if torch.backends.cpu.get_cpu_capability() == "AVX512" else WORD


def unpack(packed: Tensor, bits: int, scratch: Scratch) -> Tensor:
    """Codes each by itself, (n, width): uint8, which 8-bit state is already, or :func:`words <.functions.words>`.

    Args:
        packed: uint8 (n, width * bits / 8); width is a multiple of 32.
        bits: 8, 4 or 2.
        scratch: where they are, unless they are the state.
    """
    codes, held = packed, 8
    while held > bits:
        held //= 2
        codes = _halved(codes, held, scratch)
    if CODES is torch.uint8:
        return codes
    words = scratch.take("words", WORD, *codes.shape)
    words.view(torch.int32).copy_(codes)
    return words


def pack(codes: Tensor, packed: Tensor, bits: int, scratch: Scratch) -> None:
    """The inverse of :func:`unpack`: codes, in what that gave, to state."""
    if codes.dtype == WORD:
        narrow = packed if bits == 8 else scratch.take(f"{bits}-bit codes", torch.uint8, *codes.shape)
        narrow.copy_(codes.view(torch.int32))
        codes = narrow
    while bits < 8:
        pairs = codes.view(torch.int16)
        joined = torch.bitwise_right_shift(pairs, 8 - bits, out=scratch.take("pairs", torch.int16, *pairs.shape))
        bits *= 2
        codes = packed if bits == 8 else scratch.take(f"{bits}-bit codes", torch.uint8, *pairs.shape)
        codes.copy_(joined.bitwise_or_(pairs))  # of 16 bits the lower eight


def _halved(codes: Tensor, bits: int, scratch: Scratch) -> Tensor:
    """Bytes of two codes each to bytes of one, of so many bits."""
    height, count = codes.shape
    halves = scratch.take(f"{bits}-bit codes", torch.uint8, height, 2 * count)
    pairs = halves.view(torch.int16).copy_(codes)
    shifted = torch.bitwise_left_shift(pairs, 8 - bits, out=scratch.take("pairs", torch.int16, height, count))
    pairs.bitwise_or_(shifted).bitwise_and_(0x0101 * ((1 << bits) - 1))
    return halves
