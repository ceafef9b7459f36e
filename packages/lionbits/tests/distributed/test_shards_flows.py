"""Flows in which each rank has an optimizer over whole parameters: a pipeline; ZeRO with parameter groups."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

from lionbits import Lion

from ..family import assert_same
from .problem import SETTINGS
from .test_shards_kinds import Block
from .test_shards_others import gathered, learn
from .world import World, meshes, takes_part


def batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 64, generator=generator), torch.randn(8, 40, generator=generator)


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().sum()


def in_stages(settings: dict[str, Any]) -> None:
    """Two ranks, a layer each, in two microbatches, as the whole model with gradients of the same sums."""
    if not takes_part(2):
        return
    rank, group = dist.get_rank(), meshes()[2].get_group()
    model, stage_model = Block(), Block()
    mine = nn.Sequential(stage_model.up, nn.ReLU()) if rank == 0 else stage_model.down
    stage = PipelineStage(mine, rank, 2, torch.device("cpu"), group=group)
    schedule = ScheduleGPipe(stage, n_microbatches=2, loss_fn=loss, scale_grads=False)
    alone = model.up if rank == 0 else model.down
    whole = [Lion(part.parameters(), **SETTINGS, **settings) for part in (model.up, model.down)]
    optimizer = Lion(mine.parameters(), **SETTINGS, **settings)
    for step in (1, 2, 3):
        x, target = batches(step)
        for part in range(2):
            rows = slice(4 * part, 4 * part + 4)
            loss(model(x[rows]), target[rows]).backward()
        for one in whole:
            one.step()
            one.zero_grad()
        schedule.step(x) if rank == 0 else schedule.step(target=target)
        optimizer.step()
        optimizer.zero_grad()
        for param, other in zip(mine.parameters(), alone.parameters(), strict=True):
            assert_same(param.detach(), other.detach(), f"step {step}")
            assert_same(optimizer.momentum(param), whole[rank].momentum(other), f"step {step}")


@pytest.mark.parametrize("settings", [{"optim_bits": 8}, {"optim_bits": 4, "cautious": "mask"}], ids=str)
def test_stages_of_a_pipeline_equal_the_whole(world: World, settings: dict[str, Any]) -> None:
    """Bit for bit."""
    world(in_stages, settings)


def zero_with_groups() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # which warns, of torch.jit, while it imports itself

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        weights = [param for param in model.parameters() if param.dim() > 1]
        rest = [param for param in model.parameters() if param.dim() < 2]
        return [{"params": weights, "optim_bits": 4}, {"params": rest, "weight_decay": 0.0, "lr": 0.002}]

    settings = {**SETTINGS, "rounding": "nearest"}
    model, twin = DistributedDataParallel(Block()), DistributedDataParallel(Block())
    zero, plain = ZeroRedundancyOptimizer(groups(model), Lion, **settings), Lion(groups(twin), **settings)
    learn(model, zero, (1, 2))
    learn(twin, plain, (1, 2))
    zero.consolidate_state_dict(to=0)
    (saved, *_) = gathered(zero.state_dict() if dist.get_rank() == 0 else None)
    resumed = copy.deepcopy(model)
    again = ZeroRedundancyOptimizer(groups(resumed), Lion, **settings)
    again.load_state_dict(copy.deepcopy(saved))  # it changes what it is given
    for running, optimizer in ((model, zero), (twin, plain), (resumed, again)):
        learn(running, optimizer, (3, 4))
        assert_same([p.detach() for p in running.parameters()], [p.detach() for p in model.parameters()])
    assert any("exp_avg_codes" in state for state in plain.state.values())


def test_zero_redundancy_with_groups(world: World) -> None:
    """Settings of groups go with their parameters, on whichever rank these are."""
    world(zero_with_groups)
