"""Variants of a kernel: a plan, the shape of a tile, and the fast path or the other."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields, is_dataclass

import torch
import triton.language as tl

from lionbits_reference.spec import Format, Plan
from lionbits_table import EVEN

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class KernelVariant:
    """A variant of a kernel, for tiles of ``rows`` blocks of ``block`` elements.

    An **even** tile takes the fast path: its rows begin at multiples of 16 bytes and begin and end at multiples of 16
    elements, so that a thread moves 16 bytes at a time. The other path serves tails, misaligned views and any strides,
    element by element. Both compute the same.
    """

    plan: Plan
    rows: int
    block: int
    even: bool

    def __repr__(self) -> str:
        """Return all fields and properties that a kernel can read, including those of its plan and format.

        Triton finds what it compiled in earlier processes by the kernels' sources and by this text. Fields alone are
        not enough: a kernel of an older release would be used although the properties have changed.
        """
        return _text(self)

    @property
    def format(self) -> Format:
        """Format of the momentum."""
        return self.plan.format

    @property
    def vector(self) -> int:
        """Elements that a thread takes at a time on the fast path: 16 bytes of the wider of parameter and gradient.

        Without codes Triton chooses.
        """
        widest = max(self.plan.param_dtype.itemsize, self.plan.grad_dtype.itemsize)
        return EVEN // widest if self.format.quantised else EVEN

    @property
    def parts(self) -> int:
        """Number of parts of a block. A thread has a vector of each part, so that its 16 elements are of one block."""
        return EVEN // self.vector if self.even else 1

    @property
    def width(self) -> int:
        """Elements of a part."""
        return self.block // self.parts

    @property
    def word(self) -> int:
        """Bits of codes that are loaded together: those that a thread takes at a time, or a byte."""
        return min(self.vector * self.format.bits, 32) if self.even else 8

    @property
    def word_type(self) -> tl.dtype:
        """Triton's type of a word of codes."""
        return {8: tl.uint8, 16: tl.uint16, 32: tl.uint32}[self.word]

    @property
    def top_is_power_of_two(self) -> bool:
        """True if a division by the largest value of a code is exact as a product."""
        return math.frexp(self.format.top)[0] == 0.5

    @property
    def param_type(self) -> tl.dtype:
        """Triton's name for the parameter's dtype."""
        return _TYPES[self.plan.param_dtype]

    @property
    def grad_type(self) -> tl.dtype:
        """Triton's name for the gradient's dtype."""
        return _TYPES[self.plan.grad_dtype]

    @property
    def residual_type(self) -> tl.dtype:
        """Triton's type of the residual of a compensated parameter."""
        return tl.int8 if self.plan.master_bits == 24 else tl.int16


@functools.cache
def _text(variant: KernelVariant) -> str:
    """Return the text, cached, as some releases of Triton ask for it at every launch."""
    return _described(variant)


def _described(value: object) -> str:
    """Return a value as text; a dataclass with its fields and its properties."""
    if not is_dataclass(value):
        return repr(value)
    kind = type(value)
    names = [field.name for field in fields(value)]
    names += [name for name, held in vars(kind).items() if isinstance(held, property)]
    return f"{kind.__name__}({', '.join(f'{name}={_described(getattr(value, name))}' for name in names)})"
