"""What N ranks save M ranks load, into optimizers that never took a step, and go on where it was, bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard

from lionbits import Lion, convert, save

from ..family import assert_same
from .problem import SETTINGS, Bag, assert_equal, sharded, states, train, whole
from .world import World, meshes, takes_part

RANKS = (1, 2, 3, 4, "2x2")
FORMS: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"optim_bits": 4, "percentile_clipping": 50},
    torch.bfloat16: {"optim_bits": 8, "param_rounding": "compensated", "cautious": "mask"},
}

#: A parameter that has no gradient until after the checkpoint.
LATE = "kernel"


def build(dtype: torch.dtype, ranks: int | str | None, **more: Any) -> tuple[nn.Module, Lion]:
    """A model, on so many ranks or plain, and its optimizer."""
    module: nn.Module = Bag(dtype) if ranks is None else sharded(Bag(dtype), meshes()[ranks])
    return module, Lion(module.named_parameters(), **{**SETTINGS, **FORMS[dtype], **more})


def whole_run(dtype: torch.dtype, *steps: int) -> tuple[nn.Module, Lion]:
    """What a single process has after step 1 without one gradient, and these steps with all."""
    module, optimizer = build(dtype, None)
    train(module, optimizer, [1], without=[LATE])
    train(module, optimizer, steps)
    return module, optimizer


def group_of(ranks: int | str) -> dist.ProcessGroup:
    """All ranks of a mesh."""
    return meshes()[4 if ranks == "2x2" else ranks].get_group()


def saves(dtype: torch.dtype, folder: str, ranks: int | str) -> None:
    if takes_part(ranks):
        module, optimizer = build(dtype, ranks)
        train(module, optimizer, [1], without=[LATE])
        model_state, state = get_state_dict(module, optimizer)
        dcp.save({"model": model_state, "optim": state}, checkpoint_id=folder, process_group=group_of(ranks))


def loads(dtype: torch.dtype, folder: str, ranks: int | str) -> None:
    """Also, the next step is that of a run that was never interrupted."""
    if takes_part(ranks):
        module, optimizer = build(dtype, ranks, lr=0.5, seed=7)
        with torch.no_grad():
            for param in module.parameters():
                param.zero_()
        model_state, state = get_state_dict(module, optimizer)
        template = {"model": model_state, "optim": state}
        dcp.load(template, checkpoint_id=folder, process_group=group_of(ranks))
        set_state_dict(module, optimizer, model_state_dict=template["model"], optim_state_dict=template["optim"])
        assert_equal(module, optimizer, *whole_run(dtype), "loaded")
        train(module, optimizer, [2, 3])
        assert_equal(module, optimizer, *whole_run(dtype, 2, 3), "continued")


@pytest.mark.parametrize("saving", RANKS)
@pytest.mark.parametrize("dtype", FORMS, ids=str)
def test_what_n_ranks_save_m_ranks_load(world: World, tmp_path: Path, dtype: torch.dtype, saving: int | str) -> None:
    """Momentum, step counts, norms and what bfloat16 dropped; a parameter that had no gradient yet is no hole."""
    world(saves, dtype, str(tmp_path), saving)
    for loading in RANKS:
        world(loads, dtype, str(tmp_path), loading)


OPTIONS: dict[str, dict[str, bool]] = {
    "sharded": {},
    "flat": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True},
    "sharded, on the host": {"cpu_offload": True},
}


def hands_over(dtype: torch.dtype, ranks: int, name: str) -> None:
    if takes_part(ranks):
        options = StateDictOptions(**OPTIONS[name])
        module, optimizer = build(dtype, ranks)
        train(module, optimizer, [1], without=[LATE])
        state = copy.deepcopy(get_optimizer_state_dict(module, optimizer, options=options))
        twin, fresh = build(dtype, ranks, lr=0.5)
        with torch.no_grad():
            for param, trained in zip(twin.parameters(), module.parameters(), strict=True):
                param.copy_(trained)
        set_optimizer_state_dict(twin, fresh, state, options=options)
        assert_same(states(fresh), states(optimizer))
        assert fresh.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        assert_equal(twin, fresh, *whole_run(dtype), name)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", FORMS, ids=str)
def test_state_dicts_of_every_kind_hand_over(world: World, dtype: torch.dtype, name: str) -> None:
    """Of get_ and set_optimizer_state_dict, over ranks of which some have nothing of a parameter.

    Full and flat at once is missing: torch itself cannot set it, of any optimizer on shards.
    """
    for ranks in (1, 3):
        world(hands_over, dtype, ranks, name)


def broadcasts(dtype: torch.dtype) -> None:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=True)
    module, optimizer = build(dtype, 4)
    train(module, optimizer, [1], without=[LATE])
    state = get_optimizer_state_dict(
        module, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    assert bool(state) == (dist.get_rank() == 0)
    twin, fresh = build(dtype, 4, lr=0.5)
    set_optimizer_state_dict(twin, fresh, state, options=options)
    assert_same(states(fresh), states(optimizer))


@pytest.mark.parametrize("dtype", FORMS, ids=str)
def test_one_rank_hands_a_full_state_dict_to_all(world: World, dtype: torch.dtype) -> None:
    world(broadcasts, dtype)


def takes_its_part(dtype: torch.dtype) -> None:
    module, optimizer = build(dtype, 3) if takes_part(3) else (None, None)
    if module is not None and optimizer is not None:
        _, single = whole_run(dtype)
        single.init_state()
        optimizer.load_state_dict(copy.deepcopy(single.state_dict()))
        for param, other in zip(module.parameters(), single.param_groups[0]["params"], strict=True):
            assert_same(whole(optimizer.momentum(param)), single.momentum(other))
        assert_same(optimizer.state_dict()["param_groups"], single.state_dict()["param_groups"])


@pytest.mark.parametrize("dtype", FORMS, ids=str)
def test_a_whole_state_dict_loads_on_shards(world: World, dtype: torch.dtype) -> None:
    """Each rank takes its part of what one process saved with torch.save."""
    world(takes_its_part, dtype)


def saves_behind(folder: str) -> None:
    module, optimizer = build(torch.float32, 4)
    train(module, optimizer, [1], without=[LATE])
    group = dist.new_group()  # of its own, as it is used while the step calls the other
    state = get_optimizer_state_dict(module, optimizer)
    saving = dcp.async_save({"optim": state}, checkpoint_id=folder, process_group=group)
    train(module, optimizer, [2])
    saving.result()
    dist.destroy_process_group(group)
    twin, fresh = build(torch.float32, 4)
    template = {"optim": get_optimizer_state_dict(twin, fresh)}
    dcp.load(template, checkpoint_id=folder)
    set_optimizer_state_dict(twin, fresh, template["optim"])
    _, expected = whole_run(torch.float32)
    for param, other in zip(twin.parameters(), expected.param_groups[0]["params"], strict=True):
        assert_same(whole(fresh.momentum(param)), expected.momentum(other))


def test_training_goes_on_while_a_checkpoint_is_written(world: World, tmp_path: Path) -> None:
    """async_save writes the state of its moment."""
    world(saves_behind, str(tmp_path))


def refuses_damage(folder: str, damage: str) -> str:
    module, optimizer = build(torch.float32, 4)
    train(module, optimizer, [5, 6])
    before = copy.deepcopy(states(optimizer))
    template = {"optim": copy.deepcopy(get_optimizer_state_dict(module, optimizer))}
    try:
        dcp.load(template, checkpoint_id=folder)
    except CheckpointException as error:
        assert_same(states(optimizer), before)
        return str(error)
    raise AssertionError(f"a checkpoint with a {damage} file was loaded")


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_checkpoint_changes_nothing(world: World, tmp_path: Path, damage: str) -> None:
    """It is loaded into a copy of the state, so that what was read before the damage is in nobody's momentum."""
    world(saves, torch.float32, str(tmp_path), 4)
    file = tmp_path / "__1_0.distcp"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    for message in world(refuses_damage, str(tmp_path), damage):
        assert ("__1_0.distcp" if damage == "missing" else "RANK 1") in message


def sees_the_start(when: str) -> None:
    module, optimizer = build(torch.bfloat16, 2) if takes_part(2) else (None, None)
    if module is None or optimizer is None:
        return
    if when == "asked for":
        optimizer.init_state()
    parameters = [whole(param) for param in module.parameters()]
    state = get_optimizer_state_dict(module, optimizer)["state"]
    assert_same([whole(param) for param in module.parameters()], parameters)
    assert state.keys() == dict(module.named_parameters()).keys()
    counted = 0 if when == "asked for" else 1
    assert [held["step"] for held in state.values()] == [counted] * len(state)  # type: ignore[index]
    if when == "asked for":
        train(module, optimizer, [1], without=[LATE])
        assert_equal(module, optimizer, *whole_run(torch.bfloat16))


@pytest.mark.parametrize("when", ["asked for", "primed"])
def test_state_before_the_first_step(world: World, when: str) -> None:
    """With init_state() a run that saves before its first step is the run it would have been; torch counts a step."""
    world(sees_the_start, when)


def writes_one_file(folder: str, mesh: str | int, right: int) -> None:
    """Rank 0 saves its part; ranks that hold another refuse it, and copies of the same part take it."""
    place, file = meshes()[mesh], f"{folder}/rank0.pt"
    module = sharded(Bag(), place)
    optimizer = Lion(module.parameters(), **SETTINGS, optim_bits=8)
    train(module, optimizer, [1, 2])
    if dist.get_rank() == 0:
        save(optimizer.state_dict(), file)
    dist.barrier()
    again = Lion(module.parameters(), **SETTINGS, optim_bits=8)
    found = torch.load(file, weights_only=True)
    if (dist.get_rank() % right) == 0:
        again.load_state_dict(found)
        assert_same(states(again), states(optimizer))
    else:
        with pytest.raises(ValueError, match=r"parameter 0: exp_avg.*another rank.*file of its own.*full state dict"):
            again.load_state_dict(found)
        with pytest.raises(ValueError, match=r"another rank"):
            convert(found, again)
        assert not again.state
    dist.barrier()
    mine = f"{folder}/rank{dist.get_rank()}.pt"
    save(optimizer.state_dict(), mine)
    last = Lion(module.parameters(), **SETTINGS, optim_bits=8)
    last.load_state_dict(torch.load(mine, weights_only=True))
    assert_same(states(last), states(optimizer))


@pytest.mark.parametrize(("mesh", "right"), [(4, 4), ("2x2", 2)])
def test_the_file_of_one_rank_is_not_that_of_another(world: World, tmp_path: Path, mesh: Any, right: int) -> None:
    """``if rank == 0: save`` leads there. With HSDP, rank 2 holds a copy of what rank 0 has."""
    world(writes_one_file, str(tmp_path), mesh, right)


class Growing(nn.Module):
    """Layers by name."""

    def __init__(self, names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(64, 32, bias=False))
            nn.init.constant_(self.get_submodule(name).weight, ord(name) / 100)


def grows(folder: str, before: str, after: str, shards: bool) -> None:
    held = []
    for names in (before, after):
        module = fully_shard(Growing(names), mesh=meshes()[4]) if shards else Growing(names)
        held.append((module, Lion(module.named_parameters(), **SETTINGS, optim_bits=8)))
    (module, optimizer), (larger, other) = held
    train(module, optimizer, [1, 2])
    dcp.save({"optimizer": get_optimizer_state_dict(module, optimizer)}, checkpoint_id=folder)
    wanted = copy.deepcopy(get_optimizer_state_dict(larger, other))
    dcp.load({"optimizer": wanted}, checkpoint_id=folder, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
    set_optimizer_state_dict(larger, other, wanted)
    assert other.param_groups[0]["param_names"] == [f"{name}.weight" for name in after]
    for name in after:
        param = larger.get_parameter(f"{name}.weight")
        now = whole(other.momentum(param))
        old = whole(optimizer.momentum(module.get_parameter(f"{name}.weight"))) if name in before else now * 0
        assert_same(now, old)
        assert other.state[param]["step"] == (2 if name in before else 1)  # 1: torch's step with zero gradients
    train(larger, other, [3])


@pytest.mark.parametrize("shards", [True, False])
@pytest.mark.parametrize(("before", "after"), [("ab", "abc"), ("ab", "cab"), ("ab", "cb")])
def test_a_model_that_has_grown_is_loaded_partly(
    world: World, tmp_path: Path, before: str, after: str, shards: bool
) -> None:
    """By name, whatever comes before: names in the checkpoint are those of the smaller model."""
    world(grows, str(tmp_path), before, after, shards)
