"""What a step multiplies by, of each tensor as a whole: numbers about it go up, factors come down, on the device.

Where tensors are sharded, each kind of number is added up over ranks in one call for all tensors of a launch group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lionbits import sharding
from lionbits_reference import clipping
from lionbits_reference.spec import float32

from .scalars import vector

Group = dict[str, Any]
State = dict[str, Any]


def clips(group: Mapping[str, Any]) -> bool:
    """Whether gradients of this group's parameters may be scaled down."""
    return keeps_norms(group) or bool(group["grad_clip"] > 0)


def keeps_norms(group: Mapping[str, Any]) -> bool:
    """Whether its parameters remember the norms of their gradients."""
    return bool(group["percentile_clipping"] < 100)


def of_clipping(
    groups: Sequence[Group],
    states: Sequence[State],
    grads: Sequence[Tensor],
    steps: Tensor,
    unscale: Tensor | None,
    shard_group: sharding.ShardGroup | None,
) -> Tensor:
    """float32[k]: what clipping multiplies each gradient by.

    Of shards a norm is the square root of the parts' sums of squares, each in the order that is its meaning: where
    binary64 rounds on the way, it may differ from the whole's in the last bit.

    Args:
        groups, states, grads: of each parameter; some groups clip.
        steps: int64[k], on the device of the factors: the number of this update.
        unscale: float32, 0-d: what gradients are multiplied by besides; or None.
        shard_group: the ranks that the parameters are sharded over.
    """
    clipped = [j for j, group in enumerate(groups) if clips(group)]
    squares = torch.stack([_sum_of_squares(grads[j], groups[j]) for j in clipped])
    norms = clipping.norm(sharding.total(squares, shard_group)).to(steps.device)
    factors: list[float | Tensor] = [1.0] * len(groups)
    for j, norm in zip(clipped, norms.unbind(), strict=True):
        factors[j] = _clip_factor(groups[j], states[j], norm if unscale is None else norm * unscale, steps[j])
    return vector(factors, steps.device)


def _sum_of_squares(grad: Tensor, group: Group) -> Tensor:
    return clipping.sum_of_squares(grad, "propagate" if group["nonfinite"] == "propagate" else "skip")


def _clip_factor(group: Group, state: State, norm: Tensor, step: Tensor) -> Tensor:
    """What clipping multiplies the gradient by."""
    percentile, grad_clip = group["percentile_clipping"], group["grad_clip"]
    limit = torch.full_like(norm, float32(grad_clip) if grad_clip > 0 else torch.inf)
    if percentile < 100:
        clipping.remember(state["grad_norms"], norm, step)
        usual = clipping.percentile_limit(state["grad_norms"], percentile)
        limit = torch.where(usual < limit, usual, limit)  # a NaN among the norms limits nothing
    return clipping.clip_factor(norm, limit)
