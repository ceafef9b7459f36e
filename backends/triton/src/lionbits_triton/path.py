"""What kernels specialise on: a plan, the shape of a tile, and whether it takes the fast path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl

from lionbits_reference.spec import Format, Plan
from lionbits_table import EVEN

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class Path:
    """A way through a kernel, for tiles of ``rows`` blocks of ``block`` elements.

    An **even** tile takes the fast path: its rows begin at multiples of 16 bytes and begin and end at multiples of 16
    elements, so that a thread moves 16 bytes at a time. The other path serves tails, misaligned views and any strides,
    element by element. Both compute the same.
    """

    plan: Plan
    rows: int
    block: int
    even: bool

    @property
    def format(self) -> Format:
        """Of the momentum."""
        return self.plan.format

    @property
    def code_bytes(self) -> int:
        """Bytes of codes in a block."""
        return self.block * self.format.bits // 8

    @property
    def param_type(self) -> tl.dtype:
        """Triton's name for the parameter's dtype."""
        return _TYPES[self.plan.param_dtype]

    @property
    def grad_type(self) -> tl.dtype:
        """Triton's name for the gradient's dtype."""
        return _TYPES[self.plan.grad_dtype]

    @property
    def rest_type(self) -> tl.dtype:
        """Of what a compensated parameter keeps in the state."""
        return tl.int8 if self.plan.master_bits == 24 else tl.int16

    @property
    def even_bytes(self) -> int:
        """Bytes of codes that a thread takes at a time on the fast path.

        As many elements as it takes of other tensors, lest threads have to exchange them: 8 beside 16-bit floats; but
        16 of 8-bit codes, which are 16 bytes (measured at 4 bits: 64 instructions per element, not 71).
        """
        narrow = self.format.bits < 8 and torch.float32 not in (self.plan.param_dtype, self.plan.grad_dtype)
        return (EVEN // 2 if narrow else EVEN) * self.format.bits // 8
