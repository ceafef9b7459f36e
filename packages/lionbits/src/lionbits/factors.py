"""What a step multiplies by, of each tensor as a whole: numbers about it go up, factors come down, on the device.

Where tensors are sharded, each kind of number is added up over ranks in one call for all tensors of a launch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lionbits_reference import caution, clipping
from lionbits_reference.spec import Backend, Scalars, float32

from . import shards
from .paging import Movement
from .scalars import vector

if TYPE_CHECKING:
    from .work import Group, State, Work


def clips(group: Group) -> bool:
    """Whether gradients of this group's parameters may be scaled down."""
    return keeps_norms(group) or bool(group["grad_clip"] > 0)


def keeps_norms(group: Mapping[str, Any]) -> bool:
    """Whether its parameters remember the norms of their gradients."""
    return bool(group["percentile_clipping"] < 100)


def with_clipping(work: Work, unscale: Tensor | None, scalars: Scalars) -> Scalars:
    """Gradients scaled to the limits of their norms.

    On shards a norm is the square root of the parts' sums of squares, each in the order that is its meaning: where
    binary64 rounds on the way, it may differ from the whole's in the last bit.
    """
    clipped = [j for j, member in enumerate(work.members) if clips(member.group)]
    squares = torch.stack([_sum_of_squares(work, j) for j in clipped])
    norms = clipping.norm(shards.total(squares, work.launch.spread)).to(work.launch.device)
    factors: list[float | Tensor] = [1.0] * len(work.members)
    for j, norm in zip(clipped, norms.unbind(), strict=True):
        now = norm if unscale is None else norm * unscale
        factors[j] = _clip_factor(work.members[j].group, work.states[j], now, scalars.step[j])
    return replace(scalars, grad_scale=scalars.grad_scale * vector(factors, work.launch.device))


def with_absmax(work: Work, backend: Backend, movement: Movement, scalars: Scalars) -> Scalars:
    """The largest new momentum of each tensor, for formats with one scale."""
    plan, hyper = work.launch.plan, work.launch.hyper
    absmax = torch.zeros(len(work.batch), dtype=torch.float32, device=work.launch.device)
    for part, at in movement.parts(plan, work.batch, writes=False):
        absmax[at] = torch.maximum(absmax[at], backend.absmax(plan, part, hyper, scalars.part(at)))
    return replace(scalars, absmax=shards.total(absmax, work.launch.spread, largest=True))


def with_caution(work: Work, backend: Backend, movement: Movement, scalars: Scalars) -> Scalars:
    """Learning rates by which the elements that move make up for those that a mask holds back."""
    plan, hyper = work.launch.plan, work.launch.hyper
    assert work.launch.cautious is not None
    assert work.numel is not None
    aligned = torch.zeros(len(work.batch), dtype=torch.int64, device=work.launch.device)
    for part, at in movement.parts(plan, work.batch, writes=False):
        aligned[at] += backend.aligned(plan, part, hyper, scalars.part(at))
    shards.total(aligned, work.launch.spread)
    return replace(scalars, lr=scalars.lr * caution.rate_factor(work.launch.cautious, aligned, work.numel))


def _sum_of_squares(work: Work, j: int) -> Tensor:
    nonfinite = work.members[j].group["nonfinite"]
    return clipping.sum_of_squares(work.batch[j].grad, "propagate" if nonfinite == "propagate" else "skip")


def _clip_factor(group: Group, state: State, norm: Tensor, step: Tensor) -> Tensor:
    """What clipping multiplies the gradient by."""
    percentile, grad_clip = group["percentile_clipping"], group["grad_clip"]
    limit = torch.full_like(norm, float32(grad_clip) if grad_clip > 0 else torch.inf)
    if percentile < 100:
        clipping.remember(state["grad_norms"], norm, step)
        usual = clipping.percentile_limit(state["grad_norms"], percentile)
        limit = torch.where(usual < limit, usual, limit)  # a NaN among the norms limits nothing
    return clipping.clip_factor(norm, limit)
