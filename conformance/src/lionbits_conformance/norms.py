"""Gradients whose norm shows in which order squares were added, which a random one hides.

A norm is rounded to float32, which drops what orders differ by: some of 53 bits. So a gradient here has a norm next to
the middle between two float32 numbers, and a sum of squares next to where the root of one rounds to that middle.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from . import bits
from .oracle.clipping import norm_of
from .oracle.floats import BINARY32

#: Elements that a short gradient, a run of squares, two runs and three of them have.
SIZES = (4, 37, 300, 1025, 65_535, 65_536, 65_537, 70_000, 150_000)


@dataclass(frozen=True)
class HardNorm:
    """A gradient by two numbers."""

    size: int
    seed: int

    def gradient(self) -> Tensor:
        """float32[size]: normal numbers, of which four make up what the squares lack to that of a middle."""
        generator = torch.Generator().manual_seed(self.seed)
        grad = torch.randn(self.size, generator=generator)
        places = torch.randperm(self.size, generator=generator)[:4].tolist()
        grad[places] = 0.0
        squares = grad.double().square().tolist()
        middle = _middle(math.sqrt(math.fsum(squares)) * 1.01 + 1e-3)
        for place in places:
            wanted = (middle * middle, middle * math.ulp(middle))  # the square of half a unit of 53 bits more
            lacking = max(math.fsum([*wanted, *(-square for square in squares)]), 0.0)
            grad[place] = math.sqrt(lacking) * (1 - 2.0**-23)  # below what is lacking however it is rounded
            squares[place] = grad[place].double().square().item()
        return grad


def _middle(least: float) -> float:
    """Half-way between an even float32 from ``least`` on and the next: it rounds down, and any more rounds up."""
    bits = torch.tensor(least, dtype=torch.float32).view(torch.int32) | 1
    low, high = (bits + 1).view(torch.float32), (bits + 2).view(torch.float32)
    return (low.item() + high.item()) / 2


def hard_norms() -> st.SearchStrategy[HardNorm]:
    """Of all sizes, short ones most often: the oracle adds one by one."""
    return st.builds(HardNorm, st.sampled_from(SIZES), st.integers(0, 10_000))


#: Gradients over 65,536 elements, as many as it takes for every other order of their runs to show.
LONG = tuple(HardNorm(size, seed) for size in SIZES[-2:] for seed in range(5))


def norm_agrees(lion: Callable[..., Any], backend: Any, drawn: HardNorm) -> None:
    """The norm that an optimizer remembers of a gradient is the oracle's, in the order that is its meaning."""
    grad = drawn.gradient()
    param = torch.nn.Parameter(torch.zeros_like(grad))
    param.grad = grad
    optimizer = lion([param], percentile_clipping=50, backend=backend)
    optimizer.step()
    want, got = _wanted(drawn), optimizer.state[param]["grad_norms"][1].view(torch.int32).item()
    if got != want:
        raise bits.Disagreement(f"the norm of {drawn}: got 0x{got:08x}, want 0x{want:08x}")


@functools.cache
def _wanted(drawn: HardNorm) -> int:
    """The bits of the oracle's norm, which takes seconds where the gradient is long."""
    patterns = [pattern % 2**32 for pattern in drawn.gradient().view(torch.int32).tolist()]
    return BINARY32.to_bits(norm_of([BINARY32.from_bits(pattern) for pattern in patterns], "skip"))
