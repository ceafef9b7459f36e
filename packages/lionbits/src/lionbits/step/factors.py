"""Factors of whole tensors that clipping multiplies gradients by: norms go up, factors come down, on the device.

The number of launches does not grow with the number of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lionbits import sharding, torch_private
from lionbits_reference import clipping

from .scalars import upload

Group = dict[str, Any]
State = dict[str, Any]


def clips(group: Mapping[str, Any]) -> bool:
    """Whether gradients of this group's parameters may be scaled down."""
    return keeps_norms(group) or bool(group["grad_clip"] > 0)


def keeps_norms(group: Mapping[str, Any]) -> bool:
    """Whether its parameters remember the norms of their gradients."""
    return bool(group["percentile_clipping"] < 100)


class Clipping:
    """What clipping multiplies the gradients of some parameters by.

    Args:
        groups, states: of each parameter; some groups clip.
        device: where the factors are read.
        nonfinite: of the plan: whether norms are of the finite elements.
        shard_group: the ranks that the parameters are sharded over.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        states: Sequence[State],
        device: torch.device,
        nonfinite: str,
        shard_group: sharding.ShardGroup | None,
    ) -> None:
        self._clipped = [j for j, group in enumerate(groups) if clips(group)]
        clipped = [groups[j] for j in self._clipped]
        keeping = [i for i, group in enumerate(clipped) if keeps_norms(group)]
        limits = [group["grad_clip"] if group["grad_clip"] > 0 else torch.inf for group in clipped]
        self._limits = upload(limits, torch.float32, device)
        self._places = upload(self._clipped, torch.int64, device)
        self._keeping = upload(keeping, torch.int64, device)
        self._percentiles = upload([clipped[i]["percentile_clipping"] for i in keeping], torch.int64, device)
        self._remembering = [states[self._clipped[i]] for i in keeping]
        self._nonfinite, self._shard_group = nonfinite, shard_group

    def factors(self, grads: Sequence[Tensor], steps: Tensor, unscale: Tensor | None) -> Tensor:
        """float32[k]: what clipping multiplies each gradient by, 1 where its group does not clip.

        Of shards a norm is the square root of the parts' sums of squares, each in the order that is its meaning: where
        binary64 rounds on the way, it may differ from the whole's in the last bit.

        Args:
            grads: of each parameter.
            steps: int64[k], on the device of the factors: the number of this update.
            unscale: float32, 0-d: what gradients are multiplied by besides; or None.
        """
        squares = clipping.sums_of_squares([grads[j] for j in self._clipped], self._nonfinite)
        norms = clipping.norm(sharding.total(squares, self._shard_group)).to(steps.device)
        norms = norms if unscale is None else norms * unscale
        limits = self._usual_limits(norms, steps[self._places]) if self._remembering else self._limits
        return torch.ones_like(steps, dtype=torch.float32).scatter(0, self._places, clipping.clip_factor(norms, limits))

    def _usual_limits(self, norms: Tensor, steps: Tensor) -> Tensor:
        """float32: the smaller of the group's limit and the percentile of the norms so far, which are remembered."""
        held: list[Tensor] = [state["grad_norms"] for state in self._remembering]
        histories = clipping.remembered(torch.stack(held), norms[self._keeping], steps[self._keeping])
        torch_private.copy_each(held, histories.unbind())
        usual = clipping.percentile_limits(histories, self._percentiles)
        limits = self._limits[self._keeping]
        smaller = torch.where(usual < limits, usual, limits)  # a NaN among the norms limits nothing
        return self._limits.scatter(0, self._keeping, smaller)
