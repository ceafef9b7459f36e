"""A step of a matrix: the compiled functions, one after the other."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lionbits_reference import formats, rounding
from lionbits_reference.spec import Format, Hyper

from . import functions, packing
from .functions import Blocks, Codes
from .matrices import Matrix
from .numbers import Numbers, by_row
from .work import Work


def step(work: Work, matrix: Matrix, hyper: Hyper, numbers: Numbers) -> None:
    """Update the matrix in place, and add to the skipped elements."""
    plan, tensors = work.plan, matrix.tensors
    param, grad = tensors["param"], tensors["grad"]
    if plan.param_rounding == "compensated":
        functions.load(tensors["param_rest"].dtype)(tensors["stored"], tensors["param_rest"], param)
    skipped = work.scratch.take("skipped", torch.float32, matrix.height, 1)
    shared = numbers.rates(matrix), numbers.betas, skipped
    default = plan.caution == "none" and plan.nonfinite == "skip"
    width = matrix.width if default and matrix.width in functions.WIDTHS else 0
    if plan.format.quantised:
        momentum = work.scratch.take("momentum", torch.float32, matrix.height, matrix.width)
        codes, blocks = held(work, matrix), _blocks(work, matrix, numbers)
        scales, dtype = not plan.format.tensor_wise, codes.codes.dtype
        advance = functions.advance_codes(param.dtype, dtype, plan.caution, plan.nonfinite, scales, width)
        advance(param, grad, codes, *shared, momentum, blocks)
        draw = numbers.draw(matrix, hyper.rounding, rounding.STATE)
        functions.encode(dtype, draw is not None, width)(momentum, blocks, codes.format, draw, codes.codes)
        packing.pack(codes.codes, tensors["exp_avg_codes"], plan.format.bits, work.scratch)
    else:
        advance = functions.advance(param.dtype, plan.caution, plan.nonfinite, width)
        advance(param, grad, tensors["exp_avg"], *shared)
    if plan.nonfinite == "skip":
        numbers.scalars.skipped.add_(skipped.sum(dtype=torch.float64).to(torch.int64))
    if "stored" in tensors:
        _store_param(work, matrix, numbers)


def count(kind: str, work: Work, matrix: Matrix, numbers: Numbers) -> Tensor:
    """float32, of each row: how many elements are ``"aligned"``, or the largest new momentum, ``"absmax"``."""
    plan, grad = work.plan, matrix.tensors["grad"]
    found = torch.empty(matrix.height, 1, dtype=torch.float32, device="cpu")
    state = held(work, matrix) if plan.format.quantised else matrix.tensors["exp_avg"]
    codes = state.codes.dtype if isinstance(state, Codes) else None
    counting = functions.count(grad.dtype, codes, kind, plan.nonfinite)
    counting(state, grad, numbers.rates(matrix).grad_scale, numbers.betas, found)
    return found.view(-1)


def held(work: Work, matrix: Matrix) -> Codes:
    """The codes of a matrix, each by itself, and what they stand for."""
    format = work.plan.format
    codes = packing.unpack(matrix.tensors["exp_avg_codes"], format.bits, work.scratch)
    if format.tensor_wise:
        scales = torch.cat([slot.state["exp_avg_scale"].view(1, 1) for slot in matrix.slots], dim=1)
        (scale,) = by_row(matrix, scales, own=True)
        return Codes(codes, scale, _format(format))
    return Codes(codes, matrix.tensors["exp_avg_scale"], _format(format))


def _blocks(work: Work, matrix: Matrix, numbers: Numbers) -> Blocks:
    """Where to leave what the momentum is encoded with; for one scale per tensor it is known."""
    absmax, take, height = numbers.scalars.absmax, work.scratch.take, matrix.height
    if absmax is None:
        return Blocks(take("inverse", torch.float32, height, 1), take("limit", torch.int32, height, 1))
    (largest,) = by_row(matrix, absmax[None])
    return Blocks(*formats.block_inverse(largest, work.plan.format))


def _store_param(work: Work, matrix: Matrix, numbers: Numbers) -> None:
    """Round the float32 parameter to what is stored, by lanes or with what that drops."""
    plan, tensors = work.plan, matrix.tensors
    mode = plan.param_rounding
    if mode == "compensated":
        mode = "dithered" if plan.master_bits == 24 else "nearest"
    draw = numbers.draw(matrix, mode, rounding.PARAMETER)
    rest = tensors.get("param_rest")
    store = functions.store(None if rest is None else rest.dtype, draw is not None)
    store(tensors["param"], tensors["stored"], rest, draw)


@functools.cache
def _format(format: Format) -> formats.Numbers:
    return formats.Numbers.of(format, torch.device("cpu"))
