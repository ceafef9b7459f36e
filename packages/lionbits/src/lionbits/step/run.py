"""The update of one launch group, without a host sync."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lionbits import sharding, torch_private
from lionbits_reference import caution, formats
from lionbits_reference.spec import Scalars, binary64

from .launch import LaunchGroup
from .shared_blocks import SharedBlocks


def run(group: LaunchGroup, grads: Sequence[Tensor], loss_scale: Tensor | None, skipped: Tensor) -> None:
    """Update the parameters of a launch group, whose step was counted.

    Args:
        group: prepared.
        grads: of each parameter; of a shard, the local tensor.
        loss_scale: divides the gradients, or None.
        skipped: int64[1] where the calls run; the elements that are skipped are added to it.
    """
    plan, hyper, device, *_ = group.key
    unscale = None
    if loss_scale is not None:
        unscale = binary64(loss_scale.to(device)).reciprocal().float().reshape(()).to(device)
    scalars = group.scalars.now(skipped, unscale)
    if group.padded:
        grads = group.with_padding(grads)
        for shard in group.padded.values():
            shard.fill()
    if group.clipping is not None:
        factors = group.clipping.factors(grads, scalars.step, unscale)
        scalars = replace(scalars, grad_scale=scalars.grad_scale * factors)
    if plan.format.tensor_wise:
        scalars = replace(scalars, absmax=_absmax(group, grads, scalars))
    if plan.caution == "mask":
        scalars = replace(scalars, lr=_cautious_rates(group, grads, scalars))
    if isinstance(group.calls, SharedBlocks):
        group.calls.step(grads, hyper, scalars, group.states)
    else:
        for prepared, own, at in group.calls.calls(grads, writes=True):
            group.backend.step(prepared, own, hyper, scalars.part(at))
    if scalars.absmax is not None:
        scales = formats.block_scale(scalars.absmax, plan.format).view(-1, 1, 1)
        torch_private.copy_each([state["exp_avg_scale"] for state in group.states], scales.unbind())
    if group.padded:
        group.calls.settle()
        for shard in group.padded.values():
            shard.write_back()


def _absmax(group: LaunchGroup, grads: Sequence[Tensor], scalars: Scalars) -> Tensor:
    """Return the largest new momentum of each tensor, float32[k], for formats with one scale."""
    absmax = torch.zeros(len(grads), dtype=torch.float32, device=group.key.device)
    for prepared, own, at in group.calls.calls(grads, writes=False):
        found = group.backend.absmax(prepared, own, group.key.hyper, scalars.part(at))
        absmax[at] = torch.maximum(absmax[at], found)
    return sharding.total(absmax, group.key.shard_group, largest=True)


def _cautious_rates(group: LaunchGroup, grads: Sequence[Tensor], scalars: Scalars) -> Tensor:
    """Return learning rates that make up for the elements which a mask does not move, float32[k]."""
    assert group.key.cautious is not None
    assert group.numel is not None
    aligned = torch.zeros(len(grads), dtype=torch.int64, device=group.key.device)
    for prepared, own, at in group.calls.calls(grads, writes=False):
        aligned[at] += group.backend.aligned(prepared, own, group.key.hyper, scalars.part(at))
    sharding.total(aligned, group.key.shard_group)
    return scalars.lr * caution.rate_factor(group.key.cautious, aligned, group.numel)
