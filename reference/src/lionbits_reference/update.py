"""The update rule. Together with formats.py and rounding.py it defines Lion completely.

All arithmetic is IEEE-754 binary32, round to nearest even, **one rounding per written operation**: no fused
multiply-add, no flush to zero. Hence only separate ``* + -`` here: torch's ``add(alpha=)``, ``lerp`` and
``addcmul`` round differently. For each element, with ``m`` the decoded momentum and ``grad_scale`` from clipping,
loss scaling and maximizing::

    g  = float32(grad) * grad_scale
    c  = m*b1 + g*(1-b1)
    u  = sign(c)                    (c > 0) - (c < 0); so 0 for a zero and for a NaN
    p' = p*keep - lr*u              keep = 1 - lr*wd: decoupled decay first
    m' = m*b2 + g*(1-b2)            from the old m

Source: Chen et al., "Symbolic Discovery of Optimization Algorithms" (arXiv 2302.06675), Algorithm 2. The cautious
mask: Liang et al., "Cautious Optimizers" (arXiv 2411.16085).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Betas(Protocol):
    """The numbers of :class:`lionbits_reference.spec.Hyper` that the rule takes: floats, or 0-d float32 tensors."""

    @property
    def b1(self) -> Any:
        """b1, of the direction."""

    @property
    def one_minus_b1(self) -> Any:
        """1 - b1, formed in binary64."""

    @property
    def b2(self) -> Any:
        """b2, of the momentum."""

    @property
    def one_minus_b2(self) -> Any:
        """1 - b2, formed in binary64."""


class Updated(NamedTuple):
    """Results of the rule for elements of one shape."""

    param: Tensor  # float32: p', or p where skipped
    momentum: Tensor  # float32: m', or m where skipped
    applied: Tensor  # bool: False where the element was skipped


def blend(m: Tensor, g: Tensor, b: Any, one_minus_b: Any) -> Tensor:
    """m*b + g*(1-b), three roundings."""
    blended: Tensor = m * b + g * one_minus_b
    return blended


def direction(m: Tensor, g: Tensor, hyper: Betas, caution: str) -> Tensor:
    """u in {-1, 0, 1}, float32, after caution. Signs are compared, not products, which can underflow."""
    u = torch.sign(blend(m, g, hyper.b1, hyper.one_minus_b1))
    if caution == "none":
        return u
    sign = torch.sign(g)
    if caution == "mask":
        return torch.where(u == sign, u, 0.0)
    return torch.where(u == -sign, sign, u)


def next_momentum(m: Tensor, g: Tensor, hyper: Betas, nonfinite: str) -> tuple[Tensor, Tensor]:
    """Return m', and a bool for each element: True where it is applied.

    With ``nonfinite="skip"`` an element whose g or m' is not finite keeps its m. It suffices to test m':
    1-b2 is never zero, so a g that is not finite makes an m' that is not.
    """
    advanced = blend(m, g, hyper.b2, hyper.one_minus_b2)
    if nonfinite == "propagate":
        return advanced, torch.ones_like(advanced, dtype=torch.bool)
    applied = advanced.abs() < torch.inf  # not so of a NaN either
    return torch.where(applied, advanced, m), applied


def update(
    p: Tensor, m: Tensor, g: Tensor, lr: Tensor, keep: Tensor, hyper: Betas, caution: str, nonfinite: str
) -> Updated:
    """The rule on float32 tensors of one shape; ``lr`` and ``keep`` are 0-d float32. Writes nothing."""
    u = direction(m, g, hyper, caution)
    momentum, applied = next_momentum(m, g, hyper, nonfinite)
    moved = p * keep - lr * u
    return Updated(torch.where(applied, moved, p), momentum, applied)


def aligned(m: Tensor, g: Tensor, hyper: Betas, nonfinite: str) -> Tensor:
    """bool: elements whose c and g share a non-zero sign and that are not skipped."""
    _, applied = next_momentum(m, g, hyper, nonfinite)
    return (direction(m, g, hyper, "mask") != 0) & applied
