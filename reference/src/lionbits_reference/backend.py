"""The backend ``reference``: it applies the rule, the formats and the rounding to slots, slice by slice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import formats, rounding, update
from .slices import cut
from .spec import Format, Hyper, Plan, Scalars, Slot

name = "reference"


def supports(plan: Plan, device: torch.device) -> str:
    """Return an empty string: the reference serves every plan on any device that torch computes on."""
    return "" if device.type != "meta" else "tensors on the meta device hold no numbers"


class Prepared(NamedTuple):
    """The plan and the slots as they are."""

    plan: Plan
    slots: tuple[Slot, ...]


def prepare(plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]) -> Prepared:
    """Return the plan and the slots: the reference has nothing to prepare."""
    del grads
    return Prepared(plan, tuple(slots))


def aligned(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> Tensor:
    """Count the aligned elements of each slot, slice by slice."""
    plan = prepared.plan
    counts = torch.zeros(len(grads), dtype=torch.int64, device=scalars.lr.device)
    for j, piece, grad in _pieces(prepared, grads):
        m, g = _load_momentum(piece, plan.format), _load_grad(piece, grad, scalars.grad_scale[j])
        counts[j] += update.aligned(m, g, hyper, plan.nonfinite).sum()
    return counts


def absmax(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> Tensor:
    """Return the largest new magnitude of momentum of each slot, slice by slice."""
    plan = prepared.plan
    largest = torch.zeros(len(grads), dtype=torch.float32, device=scalars.lr.device)
    for j, piece, grad in _pieces(prepared, grads):
        m, g = _load_momentum(piece, plan.format), _load_grad(piece, grad, scalars.grad_scale[j])
        momentum, _ = update.next_momentum(m, g, hyper, plan.nonfinite)
        largest[j] = torch.maximum(largest[j], momentum.abs().amax())
    return largest


def step(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> None:
    """Update each slot, slice by slice."""
    plan = prepared.plan
    for j, piece, grad in _pieces(prepared, grads):
        p = _load_param(piece, plan)
        m, g = _load_momentum(piece, plan.format), _load_grad(piece, grad, scalars.grad_scale[j])
        new = update.update(p, m, g, scalars.lr[j], scalars.keep[j], hyper, plan.caution, plan.nonfinite)
        _store_param(new.param, piece, plan, hyper, scalars.step[j])
        if plan.format.quantised:
            noise = _noise(hyper.rounding, piece, hyper, rounding.STATE, scalars.step[j])
            largest = None if scalars.absmax is None else scalars.absmax[j]
            _store_codes(new.momentum, piece, plan.format, noise, largest)
        else:
            piece.state["exp_avg"].copy_(new.momentum.view(piece.state["exp_avg"].shape))
        scalars.skipped.add_((~new.applied).sum())


def encode(format: Format, momentum: Tensor) -> dict[str, Tensor]:
    """State tensors of ``format`` for a float32 ``momentum`` of any shape, rounded to nearest."""
    if not format.quantised:
        return {"exp_avg": momentum.to(torch.float32).clone()}
    spec = format.momentum_spec(momentum.shape)
    state = {key: torch.zeros(s.shape, dtype=s.dtype, device=momentum.device) for key, s in spec.items()}
    largest = None
    if format.tensor_wise:
        largest = momentum.abs().amax() if momentum.numel() else momentum.new_zeros(())
        state["exp_avg_scale"].copy_(formats.block_scale(largest, format))
    for piece, _ in cut(Slot(momentum, state, 0), momentum, format):
        m = piece.param.reshape(piece.matrix)
        _store_codes(m, piece, format, rounding.NEAREST, largest)
    return state


def decode(format: Format, state: Mapping[str, Any], shape: Sequence[int]) -> Tensor:
    """float32 momentum of ``shape``, contiguous."""
    device = state["exp_avg_codes" if format.quantised else "exp_avg"].device
    momentum = torch.empty(tuple(shape), dtype=torch.float32, device=device)
    for piece, _ in cut(Slot(momentum, state, 0), momentum, format):
        piece.param.copy_(_load_momentum(piece, format).view(piece.param.shape))
    return momentum


def _pieces(prepared: Prepared, grads: Sequence[Tensor]) -> Iterator[tuple[int, Slot, Tensor]]:
    for j, (slot, grad) in enumerate(zip(prepared.slots, grads, strict=True)):
        for piece, part in cut(slot, grad, prepared.plan.format):
            yield j, piece, part


def _load_grad(piece: Slot, grad: Tensor, grad_scale: Tensor) -> Tensor:
    """g = float32(grad) * grad_scale as (rows, columns)."""
    return grad.reshape(piece.matrix).to(torch.float32) * grad_scale


def _load_momentum(piece: Slot, format: Format) -> Tensor:
    rows, columns = piece.matrix
    if not format.quantised:
        exp_avg: Tensor = piece.state["exp_avg"]
        return exp_avg.reshape(rows, columns)
    return formats.decode(piece.state["exp_avg_codes"].reshape(rows, -1), piece.state["exp_avg_scale"], columns, format)


def _load_param(piece: Slot, plan: Plan) -> Tensor:
    shape = piece.matrix
    residual = piece.state["param_residual"].reshape(shape) if plan.param_rounding == "compensated" else None
    return rounding.load_param(piece.param.reshape(shape), residual)


def _store_param(p: Tensor, piece: Slot, plan: Plan, hyper: Hyper, step: Tensor) -> None:
    """Write p' (rows, columns), rounded once, through whatever strides the parameter has."""
    stored = p
    if plan.param_rounding == "compensated":
        residual = piece.state["param_residual"]
        noise = _noise("dithered" if plan.master_bits == 24 else "nearest", piece, hyper, rounding.PARAMETER, step)
        stored, dropped = rounding.split_master(p, residual.dtype, noise)
        residual.copy_(dropped.view(residual.shape))
    elif plan.param_rounding != "nearest":
        noise = _noise(plan.param_rounding, piece, hyper, rounding.PARAMETER, step)
        stored = rounding.round_unbiased(p, noise)
    piece.param.copy_(stored.view(piece.param.shape))


def _store_codes(m: Tensor, piece: Slot, format: Format, noise: Tensor | int, absmax: Tensor | None) -> None:
    """Write m' (rows, columns) as codes and scales; ``absmax`` is the tensor's, of a tensor-wise format."""
    if absmax is None:
        absmax = formats.block_absmax(m, format)
        piece.state["exp_avg_scale"].copy_(formats.block_scale(absmax, format))
    codes = piece.state["exp_avg_codes"]
    codes.copy_(formats.encode(m, absmax, noise, format).view(codes.shape))


def _noise(mode: str, piece: Slot, hyper: Hyper, purpose: int, step: Tensor) -> Tensor | int:
    salt = rounding.salt(hyper.seed, piece.index, purpose)
    return rounding.noise(mode, salt, step, piece.start, piece.row_pitch, piece.matrix)
