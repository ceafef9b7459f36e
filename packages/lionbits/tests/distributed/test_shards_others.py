"""Sharding by other means: DDP, ZeroRedundancyOptimizer, and FSDP1, which is refused where it cannot be right."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._composable import replicate
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from lionbits import Lion, fuse_into_backward

from ..family import assert_same
from .problem import SETTINGS
from .test_shards_kinds import Block
from .world import World


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: tuple[int, ...]) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
        model(torch.randn(8, 64, generator=generator)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def gathered(value: Any) -> list[Any]:
    """Of each rank. A collective call."""
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def data_parallel(settings: dict[str, Any]) -> None:
    model = DistributedDataParallel(Block())
    optimizer = Lion(model.parameters(), **SETTINGS, **settings)
    learn(model, optimizer, (1, 2, 3))
    mine = [param.detach() for param in model.parameters()], list(optimizer.state.values())
    for theirs in gathered(mine):
        assert_same(theirs, mine)


def test_ddp_keeps_ranks_alike(world: World) -> None:
    """There is nothing to do: equal gradients make equal steps, noise and all."""
    world(data_parallel, {"optim_bits": 4, "cautious": "mask", "percentile_clipping": 50})


def zero_redundancy(bits: int) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # which warns, of torch.jit, while it imports itself

    settings: dict[str, Any] = {**SETTINGS, "optim_bits": bits, "rounding": "nearest", "percentile_clipping": 50}
    model, twin = DistributedDataParallel(Block()), DistributedDataParallel(Block())
    zero, plain = ZeroRedundancyOptimizer(model.parameters(), Lion, **settings), Lion(twin.parameters(), **settings)
    learn(model, zero, (1, 2))
    learn(twin, plain, (1, 2))
    zero.consolidate_state_dict(to=0)
    (saved, *_) = gathered(zero.state_dict() if dist.get_rank() == 0 else None)
    resumed = copy.deepcopy(model)
    again = ZeroRedundancyOptimizer(resumed.parameters(), Lion, **{**settings, "lr": 0.5})
    again.load_state_dict(copy.deepcopy(saved))  # it changes what it is given
    alone = copy.deepcopy(model)
    single = Lion(alone.parameters(), **{**settings, "lr": 0.5})
    single.load_state_dict(saved)
    for running, optimizer in ((model, zero), (twin, plain), (resumed, again), (alone, single)):
        learn(running, optimizer, (3, 4))
        assert_same([p.detach() for p in running.parameters()], [p.detach() for p in model.parameters()])


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_zero_redundancy_equals_ddp(world: World, bits: int) -> None:
    """Also when it is consolidated and resumed, alone or under DDP. To nearest: noise counts from a rank's first."""
    world(zero_redundancy, bits)


def refuses_to_fuse(order: str) -> None:
    model = Block()
    before = [param.detach().clone() for param in model.parameters()]
    optimizer = Lion(model.parameters(), **SETTINGS)
    step = nullcontext()
    if order == "wrapped afterwards":
        fuse_into_backward(model, optimizer)
        running: nn.Module = DistributedDataParallel(model)
        step = pytest.raises(RuntimeError, match=r"DistributedDataParallel.*after the update.*fully_shard")
    elif order == "module":
        running = DistributedDataParallel(model)
        with pytest.raises(ValueError, match=r"Block.*DistributedDataParallel.*after the update.*fully_shard"):
            fuse_into_backward(running.module, optimizer)
    elif order == "part":
        running = DistributedDataParallel(model)
        with pytest.raises(ValueError, match=r"Linear.*DistributedDataParallel"):
            fuse_into_backward(model.up, optimizer)
    else:  # which makes its DistributedDataParallel at the first forward
        running = replicate(model)
        fuse_into_backward(running, optimizer)
        step = pytest.raises(RuntimeError, match=r"DistributedDataParallel.*replicate")
    with step:
        running(torch.full((8, 64), 1.0 + dist.get_rank())).square().sum().backward()
    assert_same([param.detach() for param in model.parameters()], before)


@pytest.mark.parametrize("order", ["module", "part", "wrapped afterwards", "replicate"])
def test_what_is_averaged_later_is_not_used_in_backward(world: World, order: str) -> None:
    """Whether DDP is seen or not: at the latest when the first gradient arrives."""
    world(refuses_to_fuse, order)


def fuses_what_ddp_leaves_alone() -> None:
    model, twin = Block(), Block()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["down.weight", "down.bias"])
    running = DistributedDataParallel(model)
    fused, plain = (Lion(one.down.parameters(), **SETTINGS) for one in (model, twin))
    fuse_into_backward(model.down, fused)
    for one, optimizer in ((running, fused), (twin, plain)):
        one(torch.ones(8, 64)).square().sum().backward()
        optimizer.step()
    assert_same([p.detach() for p in model.parameters()], [p.detach() for p in twin.parameters()])


def test_parameters_that_ddp_ignores_are_fused(world: World) -> None:
    world(fuses_what_ddp_leaves_alone)


def flat(use_orig_params: bool) -> None:
    model = FullyShardedDataParallel(Block(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    twin = DistributedDataParallel(Block())
    optimizer, plain = Lion(model.parameters(), **SETTINGS), Lion(twin.parameters(), **SETTINGS)
    learn(model, optimizer, (1,))
    learn(twin, plain, (1,))
    resumed = FullyShardedDataParallel(Block(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    again = Lion(resumed.parameters(), **{**SETTINGS, "lr": 0.5})
    set_optimizer_state_dict(resumed, again, copy.deepcopy(get_optimizer_state_dict(model, optimizer)))
    resumed.load_state_dict(model.state_dict())
    for running, stepper in ((model, optimizer), (resumed, again), (twin, plain)):
        learn(running, stepper, (2,))
    with FullyShardedDataParallel.summon_full_params(model), FullyShardedDataParallel.summon_full_params(resumed):
        for one, other, third in zip(model.parameters(), resumed.parameters(), twin.parameters(), strict=False):
            assert_same(other.detach(), one.detach())
            if use_orig_params:
                torch.testing.assert_close(one.detach(), third.detach())  # gradients were added up in another order


@pytest.mark.parametrize("use_orig_params", [True, False])
def test_fsdp1_at_32_bits(world: World, use_orig_params: bool) -> None:
    """Each element is enough for itself: it trains, and resumes from its own checkpoints."""
    world(flat, use_orig_params)


REFUSED: list[dict[str, Any]] = [
    {"optim_bits": 8},
    {"optim_bits": 4},
    {"percentile_clipping": 50},
    {"grad_clip": 1.0},
    {"cautious": "mask"},
    {"nonfinite": "raise"},
    {"param_rounding": "compensated"},
]


def refuses_flat(use_orig_params: bool) -> None:
    block = Block(torch.bfloat16)
    model = FullyShardedDataParallel(block, use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    for settings in REFUSED:
        (name,) = settings
        with pytest.raises(ValueError, match=rf"{name}=.*FSDP1.*fully_shard"):
            Lion(model.parameters(), **settings)
    optimizer = Lion(model.parameters())
    optimizer.param_groups[0]["grad_clip"] = 1.0
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match="FSDP1"):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("use_orig_params", [True, False])
def test_fsdp1_is_refused_where_tensors_matter(world: World, use_orig_params: bool) -> None:
    """Its flat pieces are no tensors: scales, norms and counts over them would depend on the number of ranks."""
    world(refuses_flat, use_orig_params)
