"""Exact float32 weights of sharded models, and counts in a tensor: through DCP in place, without an int anywhere."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel

from lionbits import Lion, float32_parameters

from ..family import assert_same
from .problem import SETTINGS, Bag, assert_equal, sharded, train, whole
from .test_shards_kinds import Block
from .test_shards_others import learn
from .world import World, meshes, takes_part

COMPENSATED: dict[str, Any] = {**SETTINGS, "optim_bits": 8, "param_rounding": "compensated"}


def build(dtype: torch.dtype, ranks: int | None, **more: Any) -> tuple[nn.Module, Lion]:
    module: nn.Module = Bag(dtype) if ranks is None else sharded(Bag(dtype), meshes()[ranks])
    return module, Lion(module.named_parameters(), **{**COMPENSATED, **more})


def has_exact_weights(ranks: int) -> None:
    """By name, placed like the parameters; and the same after the checkpoint was loaded into a float32 model."""
    if not takes_part(ranks):
        return
    module, optimizer = build(torch.bfloat16, ranks)
    single, other = build(torch.bfloat16, None)
    train(module, optimizer, [1, 2, 3])
    train(single, other, [1, 2, 3])
    expected = float32_parameters(single, other)
    found = float32_parameters(module, optimizer)
    assert_same({name: whole(value) for name, value in found.items()}, expected)
    for name, param in module.named_parameters():
        assert getattr(found[name], "placements", None) == getattr(param, "placements", None)
    target = sharded(Bag(torch.bfloat16), meshes()[ranks])
    with torch.no_grad():
        for mine, theirs in zip(target.parameters(), module.parameters(), strict=True):
            mine.copy_(theirs)
    target.float()
    resumed = Lion(target.named_parameters(), **{**SETTINGS, "optim_bits": 8})
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_same({name: whole(param.detach()) for name, param in target.named_parameters()}, expected)
    exact, plain = build(torch.float32, None)
    with torch.no_grad():
        for name, param in exact.named_parameters():
            param.copy_(expected[name])
    state = copy.deepcopy(other.state_dict())
    plain.load_state_dict(state)
    train(target, resumed, [4, 5])
    train(exact, plain, [4, 5])
    assert_equal(target, resumed, exact, plain, "continued in float32")


@pytest.mark.parametrize("ranks", [1, 3])
def test_float32_weights_of_shards(world: World, ranks: int) -> None:
    world(has_exact_weights, ranks)


def loads_in_place(folder: str) -> None:
    """``dcp.load`` into the optimizer's own state dict, which nobody loads afterwards."""
    settings = {"rounding": "stochastic", "percentile_clipping": 50, "param_rounding": "nearest"}
    module, optimizer = build(torch.bfloat16, 4, **settings)
    train(module, optimizer, [1, 2, 3])
    dcp.save({"optim": optimizer.state_dict()}, checkpoint_id=folder)
    twin, fresh = build(torch.bfloat16, 4, **settings)
    train(twin, fresh, [7])
    with torch.no_grad():
        for mine, theirs in zip(twin.parameters(), module.parameters(), strict=True):
            mine.copy_(theirs)
    dcp.load({"optim": fresh.state_dict()}, checkpoint_id=folder)
    for state in fresh.state_dict()["state"].values():
        assert all(isinstance(value, Tensor) for value in state.values())
        assert int(state["step"]) == 3
    train(module, optimizer, [4, 5])
    train(twin, fresh, [4, 5])
    assert_same(
        [whole(param.detach()) for param in twin.parameters()], [whole(param.detach()) for param in module.parameters()]
    )


def test_a_checkpoint_is_loaded_in_place(world: World, tmp_path: Path) -> None:
    world(loads_in_place, str(tmp_path))


def flat_from_rank_0(use_orig_params: bool) -> None:
    """FSDP1 sends each value of a full state dict to the other ranks, for which it calls ``cpu()`` on it."""
    full = StateDictOptions(full_state_dict=True, cpu_offload=True)
    made = []
    for rate in (0.01, 0.5):
        model = FullyShardedDataParallel(Block(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
        made.append((model, Lion(model.parameters(), **{**SETTINGS, "lr": rate})))
    (model, optimizer), (twin, fresh) = made
    learn(model, optimizer, (1, 2))
    twin.load_state_dict(model.state_dict())
    saved = get_optimizer_state_dict(model, optimizer, options=full)
    sending = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(twin, fresh, saved if dist.get_rank() == 0 else {}, options=sending)
    for running, stepper in made:
        learn(running, stepper, (3,))
    assert_same([param.detach() for param in twin.parameters()], [param.detach() for param in model.parameters()])
    steps = [[int(state["step"]) for state in stepper.state.values()] for _, stepper in made]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("use_orig_params", [True, False])
def test_fsdp1_sends_a_full_state_dict_from_rank_0(world: World, use_orig_params: bool) -> None:
    world(flat_from_rank_0, use_orig_params)
