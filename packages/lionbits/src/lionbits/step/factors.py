"""Clipping factors of whole tensors, computed on the device: norms are reduced, factors are applied.

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
    """True if gradients of this group's parameters may be scaled down."""
    return keeps_norms(group) or bool(group["grad_clip"] > 0)


def keeps_norms(group: Mapping[str, Any]) -> bool:
    """True if its parameters keep a history of their gradients' norms."""
    return bool(group["percentile_clipping"] < 100)


class Clipping:
    """Clipping of the gradients of some parameters.

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

    def tensors(self) -> list[Tensor]:
        """Return what is kept on the device."""
        return [self._limits, self._places, self._keeping, self._percentiles]

    def factors(self, grads: Sequence[Tensor], steps: Tensor, unscale: Tensor | None) -> Tensor:
        """Return the clipping factor of each gradient, float32[k]; 1 if its group does not clip.

        The norm of a sharded tensor is the root of the sum of the shards' sums of squares, each in its defined order.
        If binary64 rounds in between, it may differ from the norm of the whole in the last bit.

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
        """Return the smaller of the group's limit and the percentile of past norms, float32; the norms are recorded."""
        held: list[Tensor] = [state["grad_norms"] for state in self._remembering]
        histories = clipping.remembered(torch.stack(held), norms[self._keeping], steps[self._keeping])
        torch_private.copy_each(held, histories.unbind())
        usual = clipping.percentile_limits(histories, self._percentiles)
        limits = self._limits[self._keeping]
        smaller = torch.where(usual < limits, usual, limits)  # a NaN among the norms limits nothing
        return self._limits.scatter(0, self._keeping, smaller)
