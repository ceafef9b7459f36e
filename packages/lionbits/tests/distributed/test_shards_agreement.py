"""Ranks that do not take the same step are told in what they differ, before anything is added up or changed."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from lionbits import Lion, fuse_into_backward, sharding

from ..family import assert_same
from .problem import SETTINGS, Bag, gradient, part, sharded, states, train
from .world import World, meshes

SHAPES = {"a": (64, 64), "b": (64, 64), "c": (13, 71)}

#: What one rank does otherwise, what all do besides, and what the message has to say.
FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "order": ({}, {"grad_clip": 1.0}, r"parameter 0 is .* b on rank 2 and .* a on rank 0"),
    "fewer": ({}, {"cautious": "mask"}, r"parameter 2 is None on rank 2 and \(13, 71\).* c on rank 0"),
    "gradient": ({}, {"grad_clip": 1.0}, r"the gradient of parameter 1 \(b\) is none on rank 2 and there on rank 0"),
    "no gradients": ({}, {"cautious": "mask"}, r"the gradient of parameter 0 \(a\) is none on rank 2"),
    "seed": ({"seed": 5}, {}, r"seed of the group of parameter 0 is 5 on rank 2 and 0 on rank 0"),
    "lr": ({"lr": 0.5}, {}, r"lr of the group of parameter 0 is 0\.5 on rank 2 and 0\.01 on rank 0"),
    "lr tensor": ({"lr": torch.tensor(0.5)}, {}, r"lr .* is 0\.5 on rank 2"),
    "no lr": ({"lr": 0.0}, {}, r"lr .* is 0\.0 on rank 2"),
    "betas": ({"betas": (0.8, 0.9)}, {}, r"betas .* is \[0\.8, 0\.9\] on rank 2"),
    "bits": ({"optim_bits": 8}, {"optim_bits": 4}, r"optim_bits .* is 8 on rank 2 and 4 on rank 0"),
}


def tells(fault: str, mesh: int | str) -> None:
    other, common, message = FAULTS[fault]
    differs = dist.get_rank() == 2
    module = sharded(Bag(shapes=SHAPES), meshes()[mesh])
    named = list(module.named_parameters())
    if differs and fault == "order":
        named[:2] = named[1::-1]
    if differs and fault == "fewer":
        del named[2:]
    optimizer = Lion(named, **{**SETTINGS, **common, **(other if differs else {})})
    before = [sharding.local_tensor(param.detach()).clone() for param in module.parameters()]
    for position, (name, param) in enumerate(module.named_parameters()):
        missing = differs and (fault == "no gradients" or (fault == "gradient" and name == "b"))
        param.grad = None if missing else part(gradient(param, position, 1), param)
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert not optimizer.state
    assert_same([sharding.local_tensor(param.detach()) for param in module.parameters()], before)


@pytest.mark.parametrize("fault", FAULTS)
def test_ranks_that_differ_are_told_in_what(world: World, fault: str) -> None:
    """Every one of them."""
    world(tells, fault, 4)


@pytest.mark.parametrize("fault", ["order", "seed"])
def test_ranks_of_a_mesh_of_two_dimensions(world: World, fault: str) -> None:
    """Copies too."""
    world(tells, fault, "2x2")


#: What one rank changes after the first steps, and what its message has to say.
LATER: dict[str, tuple[dict[str, Any], str]] = {
    "gradient": ({}, r"the gradient of parameter 1 \(b\) is none here and was there"),
    "setting": (
        {"betas": (0.8, 0.9)},
        r"betas of the group of parameter 0 is \[0\.8, 0\.9\] here and was \[0\.9, 0\.99\]",
    ),
}


def tells_later(change: str, mesh: int | str) -> None:
    """Rank 2 alone makes the change. When it has been told, and takes the change back, the step goes on for all."""
    settings, message = LATER[change]
    module = sharded(Bag(shapes=SHAPES), meshes()[mesh])
    optimizer = Lion(module.named_parameters(), **SETTINGS, grad_clip=1.0)
    train(module, optimizer, [1, 2])
    store = dist.group.WORLD.get_group_store()
    timeout = store.timeout
    if dist.get_rank() == 2:
        store.set_timeout(timedelta(seconds=1))
        params = [sharding.local_tensor(param.detach()).clone() for param in module.parameters()]
        moments = copy.deepcopy(states(optimizer))
        group = optimizer.param_groups[0]
        usual = {key: group[key] for key in settings}
        group |= settings
        with pytest.raises(RuntimeError, match=f"rank 2 has to compare .* within 1 seconds: {message}"):
            train(module, optimizer, [3], without=["b"] if change == "gradient" else [])
        assert_same([sharding.local_tensor(param.detach()) for param in module.parameters()], params)
        assert_same(states(optimizer), moments)
        group |= usual
        store.set_timeout(timeout)
    train(module, optimizer, [3])
    for group in optimizer.param_groups:
        group["betas"] = (0.8, 0.9)
    train(module, optimizer, [4])  # all ranks compare again
    whole = Bag(shapes=SHAPES)
    alone = Lion(whole.named_parameters(), **SETTINGS, grad_clip=1.0)
    train(whole, alone, [1, 2, 3])
    alone.param_groups[0]["betas"] = (0.8, 0.9)
    train(whole, alone, [4])
    assert_same(
        [param.full_tensor().detach() for param in module.parameters()], [p.detach() for p in whole.parameters()]
    )


@pytest.mark.parametrize("change", LATER)
@pytest.mark.parametrize("mesh", [4, "2x2"])
def test_a_rank_that_changes_alone_is_told_while_the_others_wait(world: World, change: str, mesh: int | str) -> None:
    """Its collectives would have other sizes than theirs, which ends a process or hangs."""
    world(tells_later, change, mesh)


def calls_of(optimizer: Lion, module: nn.Module, step: int) -> int:
    with CommDebugMode() as calls:
        train(module, optimizer, [step])
    return int(calls.get_total_counts())


def counts_calls(mesh: int | str) -> None:
    """Of other ranks: one along each dimension of the mesh when something has changed for all, else none."""
    dims = meshes()[mesh].ndim
    module = sharded(Bag(), meshes()[mesh])
    optimizer = Lion(module.named_parameters(), **SETTINGS)
    assert [calls_of(optimizer, module, step) for step in (1, 2, 3)] == [dims, 0, 0]
    optimizer.param_groups[0]["lr"] = 0.002
    assert calls_of(optimizer, module, 4) == 0
    optimizer.param_groups[0]["betas"] = (0.8, 0.9)
    assert [calls_of(optimizer, module, step) for step in (5, 6)] == [dims, 0]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert calls_of(optimizer, module, 7) == 0
    if dist.get_rank() == 1:  # which prepares anew, alone
        for state in states(optimizer):
            state["exp_avg"] = state["exp_avg"].clone()
        optimizer._step_cache = None
    assert calls_of(optimizer, module, 8) == 0
    twin = copy.deepcopy(optimizer)
    assert [calls_of(optimizer, module, step) for step in (9, 10)] == [0, 0]
    assert twin._agreed is None


@pytest.mark.parametrize("mesh", [4, "2x2"])
def test_steps_are_compared_when_something_has_changed_for_all(world: World, mesh: int | str) -> None:
    world(counts_calls, mesh)


def primes() -> None:
    """torch's step at learning rate 0 leaves the true rates to be compared."""
    module = sharded(Bag(), meshes()[4])
    optimizer = Lion(module.named_parameters(), **{**SETTINGS, "lr": 0.1 if dist.get_rank() == 3 else 0.2})
    get_optimizer_state_dict(module, optimizer)
    assert optimizer.state
    with pytest.raises(RuntimeError, match=r"lr of .* is 0\.1 on rank 3 and 0\.2 on rank 0"):
        train(module, optimizer, [1])


def test_rates_are_compared_after_the_step_that_makes_state(world: World) -> None:
    world(primes)


def tells_fused() -> None:
    module = sharded(Bag(), meshes()[4])
    optimizer = Lion(module.named_parameters(), **SETTINGS, seed=dist.get_rank())
    fuse_into_backward(module, optimizer)
    with pytest.raises(RuntimeError, match=r"seed .* is 1 on rank 1 and 0 on rank 0"):
        optimizer.step()


def test_a_fused_optimizer_is_compared_in_step(world: World) -> None:
    world(tells_fused)


def is_outside(settings: dict[str, Any]) -> None:
    """The first two ranks share one parameter, all four another."""
    few, all_ = meshes()[2], meshes()[4]
    outside = dist.get_rank() > 1
    local = torch.ones(0 if outside else 32, 64)
    apart = nn.Parameter(DTensor.from_local(local, few, [Shard(0)], run_check=False, shape=(64, 64), stride=(64, 1)))
    shared = nn.Parameter(distribute_tensor(torch.ones(64, 64), all_, [Shard(0)]))
    whole = {**SETTINGS, **settings}
    if settings and outside:
        with pytest.raises(ValueError, match=r"outside the mesh of a parameter of shape \(64, 64\)"):
            Lion([apart, shared], **whole)
        return
    optimizer = Lion([apart, shared], **whole)
    if settings:
        return
    for _ in range(2):
        apart.grad, shared.grad = torch.ones_like(apart), torch.ones_like(shared)
        optimizer.step()
    assert optimizer.skipped_elements() == 0
    alone = nn.Parameter(torch.ones(64, 64))
    other = Lion([nn.Parameter(torch.ones(64, 64)), alone], **whole)
    for _ in range(2):
        alone.grad = torch.ones_like(alone)
        other.step()
    assert_same(shared.full_tensor().detach(), alone.detach())
    if not outside:
        assert sharding.local_tensor(apart.detach()).ne(1).all()


@pytest.mark.parametrize(
    "settings", [{}, {"grad_clip": 1.0}, {"cautious": "mask"}, {"percentile_clipping": 50}], ids=str
)
def test_a_rank_outside_the_mesh_of_a_parameter(world: World, settings: dict[str, Any]) -> None:
    """It has nothing to do, and is refused where it would have to know of the whole tensor."""
    world(is_outside, settings)
