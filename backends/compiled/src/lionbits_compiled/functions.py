"""The compiled functions: the reference's rule over blocks as the rows of matrices.

Rows are (n, width) and contiguous; a number of each row is (n, 1). Formats, betas and rates are arguments too, so
that one function serves them all; each remaining setting has a function of its own. The functions write into their
arguments and return nothing, so that nothing of a model's size is ever allocated.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from lionbits_reference import formats, rounding, update

from .compiling import Compiled


class Betas(NamedTuple):
    """The betas: by value, or in memory if that is faster."""

    b1: float | Tensor
    one_minus_b1: float | Tensor
    b2: float | Tensor
    one_minus_b2: float | Tensor


class Rates(NamedTuple):
    """float32 (n, 1)."""

    lr: Tensor
    keep: Tensor
    grad_scale: Tensor


class Draw(NamedTuple):
    """Inputs of the noise of rows: int32 (n, 1), and int32 (width,) of the columns."""

    low: Tensor  # lower half of the number of a row's first pair
    spread: Tensor
    phase: Tensor
    half: Tensor  # this and the next as :func:`bitcast`
    odd: Tensor


class Codes(NamedTuple):
    """Momentum in codes, one to a byte or word, and its format."""

    codes: Tensor  # uint8, or words by :func:`bitcast` (n, width)
    scale: Tensor  # float32 (n, 1)
    format: formats.FormatConstants


class Blocks(NamedTuple):
    """Inputs of the encoding of new momentum: (n, 1)."""

    inverse: Tensor  # float32
    limit: Tensor  # int32


#: Dtype as which integers are passed to compiled functions and back; see :func:`bitcast`.
WORD = torch.float32


def bitcast(integers: Tensor) -> Tensor:
    """View int32 numbers as float32, without arithmetic on them; ``view(torch.int32)`` gives them back.

    torch's vectors load and store float32 at once, but other dtypes by way of an array on the stack, where a load
    waits for stores of other sizes: with AVX2 that took longer than all the arithmetic of a step.
    """
    return integers.view(WORD)


#: Widths that have code of their own in steps with default settings, at 32 bits the first: it is a little faster than
#: code for any.
WIDTHS = (4096, 256, 128)


@functools.cache
def advance(dtype: torch.dtype, caution: str, nonfinite: str, width: int) -> Compiled:
    """Return a step with float32 momentum, for parameters and gradients of one dtype."""

    def advance(param: Tensor, grad: Tensor, exp_avg: Tensor, rates: Rates, betas: Betas, skipped: Tensor) -> None:
        g = grad.to(torch.float32) * rates.grad_scale
        p = param.to(torch.float32)
        new = update.update(p, exp_avg, g, rates.lr, rates.keep, betas, caution, nonfinite)
        param.copy_(new.param)
        exp_avg.copy_(new.momentum)
        if nonfinite == "skip":
            _count(skipped, new.applied)

    return Compiled(advance, f"32-bit steps of {dtype}, caution {caution}, {nonfinite}", width)


@functools.cache
def advance_codes(
    dtype: torch.dtype, codes: torch.dtype, caution: str, nonfinite: str, scales: bool, width: int
) -> Compiled:
    """Return a step that leaves new momentum, not yet encoded, beside the codes, and new scales if rows have them."""

    def advance(
        param: Tensor,
        grad: Tensor,
        held: Codes,
        rates: Rates,
        betas: Betas,
        skipped: Tensor,
        momentum: Tensor,
        blocks: Blocks,
    ) -> None:
        m = _momentum(held)
        g = grad.to(torch.float32) * rates.grad_scale
        p = param.to(torch.float32)
        new = update.update(p, m, g, rates.lr, rates.keep, betas, caution, nonfinite)
        param.copy_(new.param)
        momentum.copy_(new.momentum)
        if nonfinite == "skip":
            _count(skipped, new.applied)
        if scales:
            absmax = new.momentum.abs().amax(dim=1, keepdim=True)
            inverse, limit = formats.block_inverse(absmax, held.format)
            held.scale.copy_(formats.block_scale(absmax, held.format))
            blocks.inverse.copy_(inverse)
            blocks.limit.copy_(limit)

    title = f"steps on codes in {codes} of {dtype}, caution {caution}, {nonfinite}{', scales' if scales else ''}"
    return Compiled(advance, title, width)


@functools.cache
def encode(dtype: torch.dtype, drawn: bool, width: int) -> Compiled:
    """Return an encoder of momentum to codes of this dtype, with noise (``drawn``) or to nearest."""

    def encode(
        momentum: Tensor, blocks: Blocks, format: formats.FormatConstants, draw: Draw | None, codes: Tensor
    ) -> None:
        found = formats.code(momentum, blocks.inverse, blocks.limit, _noise(draw), format)
        codes.copy_(bitcast(found) if dtype == WORD else found)

    return Compiled(encode, f"codes in {dtype}, {'drawn' if drawn else 'nearest'}", width)


@functools.cache
def store(kept: torch.dtype | None, drawn: bool) -> Compiled:
    """Return a function that stores float32 parameters as bfloat16, with the residual in another dtype, or without."""

    def store(p: Tensor, param: Tensor, residual: Tensor | None, draw: Draw | None) -> None:
        if residual is None:
            param.copy_(rounding.round_unbiased(p, _noise(draw)))
        else:
            stored, dropped = rounding.split_master(p, residual.dtype, _noise(draw))
            param.copy_(stored)
            residual.copy_(dropped)

    return Compiled(store, f"bfloat16 parameters{f' and {kept}' if kept else ''}{', drawn' if drawn else ''}")


@functools.cache
def load(residual: torch.dtype) -> Compiled:
    """Return a function that joins bfloat16 parameters and their residuals to float32."""

    def load(param: Tensor, residual: Tensor, p: Tensor) -> None:
        p.copy_(rounding.load_param(param, residual))

    return Compiled(load, f"compensated parameters, {residual}")


@functools.cache
def count(dtype: torch.dtype, codes: torch.dtype | None, kind: str, nonfinite: str) -> Compiled:
    """Return a function that counts aligned elements per row, or finds the largest new momentum.

    ``codes`` is the dtype of the codes, None for float32 momentum.
    """

    def count(held: Codes | Tensor, grad: Tensor, grad_scale: Tensor, betas: Betas, found: Tensor) -> None:
        m = held if isinstance(held, Tensor) else _momentum(held)
        g = grad.to(torch.float32) * grad_scale
        if kind == "aligned":
            aligned = update.aligned(m, g, betas, nonfinite)
            found.copy_(aligned.to(torch.float32).sum(dim=1, keepdim=True))
        else:
            momentum, _ = update.next_momentum(m, g, betas, nonfinite)
            found.copy_(momentum.abs().amax(dim=1, keepdim=True))

    return Compiled(count, f"{kind} with {dtype}, {nonfinite}{f', codes in {codes}' if codes else ''}")


def _count(skipped: Tensor, applied: Tensor) -> None:
    """Add the skipped elements, from the applied ones of each row: float32 holds up to 4096 of them exactly."""
    rows = applied.to(torch.float32).sum(dim=1)
    skipped.add_(applied.numel() - rows.sum(dtype=torch.int64))


def _momentum(held: Codes) -> Tensor:
    codes = held.codes.view(torch.int32) if held.codes.dtype == WORD else held.codes.to(torch.int32)
    return formats.value(codes, held.format) * held.scale


def _noise(draw: Draw | None) -> Tensor:
    if draw is None:  # a tensor, as torch 2.9 cannot shift a number by one that may be any
        return torch.full((), rounding.NEAREST, dtype=torch.int32, device="cpu")
    half, odd = draw.half.view(torch.int32), draw.odd.view(torch.int32)
    return rounding.noise_of_pairs(draw.low + half, draw.spread, draw.phase, odd)
