"""Every way to be sharded exchanges state with every other, by every way that torch has to save and load it.

Vectors of 4,096 elements, LoRA's B, biases, an embedding, a matrix cut by columns, and odd sizes, at 32, 8 and 4 bits.
After loading, and after two more steps, all is as in one process that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import lionbits
from lionbits import Lion

from .problem import Bag, assert_equal, train
from .world import World, meshes, takes_part

SHAPES = {
    "norm": (4096,),
    "bias": (130,),
    "odd": (1037,),
    "lora_b": (516, 8),
    "depthwise": (101, 1, 3, 3),
    "embedding": (301, 64),
    "columns": (40, 512),
}

#: Placements under tensor parallelism of what is not cut along its first dimension. Of uneven parts of uneven parts
#: torch itself puts no full state dict together (``_StridedShard._shard_tensor`` asserts that there are none).
TENSOR_PARALLEL = {"columns": Shard(1), **dict.fromkeys(("bias", "odd", "depthwise", "embedding"), Replicate())}

#: Ways to be sharded, each with the ranks that take part.
WAYS: dict[str, int | str] = {
    "plain": 1,
    "ddp": 4,
    "fsdp 1": 1,
    "fsdp 2": 2,
    "fsdp 3": 3,
    "fsdp 4": 4,
    "hsdp 2x2": "2x2",
    "tp 2": 2,
    "fsdp x tp": "2x2",
}

SETTINGS = {"lr": 0.01, "weight_decay": 0.1, "min_8bit_size": 256, "rounding": "dithered"}

FULL = StateDictOptions(full_state_dict=True)
SENT = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def build(way: str, bits: int) -> tuple[nn.Module, Lion]:
    """The same model and optimizer, sharded in this way."""
    module, mesh = Bag(shapes=SHAPES), meshes()[WAYS[way]]
    if "tp" in way:
        for name, param in module.named_parameters():
            inner = mesh["inner"] if mesh.ndim == 2 else mesh
            placed = distribute_tensor(param.detach(), inner, [TENSOR_PARALLEL.get(name, Shard(0))])
            setattr(module, name, nn.Parameter(placed))
    if "fsdp" in way or "hsdp" in way:
        fully_shard(module, mesh=mesh["outer"] if "tp" in way else mesh)
    return module, Lion(module.named_parameters(), **SETTINGS, optim_bits=bits)


@cache
def expected(bits: int, steps: int) -> tuple[nn.Module, Lion]:
    """One process after so many steps."""
    module, optimizer = build("plain", bits)
    train(module, optimizer, range(1, steps + 1))
    return module, optimizer


def saves(way: str, bits: int, folder: Path) -> None:
    """By torch.distributed.checkpoint, and as one file."""
    if takes_part(WAYS[way]):
        module, optimizer = build(way, bits)
        train(module, optimizer, [1, 2])
        assert_equal(module, optimizer, *expected(bits, 2), f"{way}, before saving")
        group = None if WAYS[way] == "2x2" else meshes()[WAYS[way]].get_group()
        state = {"optim": get_optimizer_state_dict(module, optimizer)}
        dcp.save(state, checkpoint_id=folder / "dcp", process_group=group)
        dcp.save({"optim": optimizer.state_dict()}, checkpoint_id=folder / "numbers", process_group=group)
        full = get_optimizer_state_dict(module, optimizer, options=FULL)
        by_number = full_by_number(optimizer)
        if torch.distributed.get_rank() == 0:
            torch.save(full, folder / "full.pt")
            torch.save(by_number, folder / "numbers.pt")
            torch.save(module_values(module), folder / "model.pt")
        else:
            module_values(module)


def full_by_number(optimizer: Lion) -> dict[str, Any]:
    """``state_dict()`` with whole tensors. A collective call."""
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        for key, value in state.items():
            state[key] = value.full_tensor() if hasattr(value, "full_tensor") else value
    return saved


def module_values(module: nn.Module) -> dict[str, torch.Tensor]:
    """Whole parameters. A collective call."""
    named = {name: param.detach() for name, param in module.named_parameters()}
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in named.items()}


def by_dcp(module: nn.Module, optimizer: Lion, folder: Path, way: str) -> None:
    state = {"optim": get_optimizer_state_dict(module, optimizer)}
    group = None if WAYS[way] == "2x2" else meshes()[WAYS[way]].get_group()
    dcp.load(state, checkpoint_id=folder / "dcp", process_group=group)
    set_optimizer_state_dict(module, optimizer, state["optim"])


def in_place(module: nn.Module, optimizer: Lion, folder: Path, way: str) -> None:
    """Into the tensors of ``state_dict()``, which are the optimizer's, or are written back by the next step."""
    group = None if WAYS[way] == "2x2" else meshes()[WAYS[way]].get_group()
    optimizer.init_state()
    dcp.load({"optim": optimizer.state_dict()}, checkpoint_id=folder / "numbers", process_group=group)


def by_full_state_dict(module: nn.Module, optimizer: Lion, folder: Path, way: str) -> None:
    set_optimizer_state_dict(module, optimizer, torch.load(folder / "full.pt"), options=FULL)


def by_broadcast(module: nn.Module, optimizer: Lion, folder: Path, way: str) -> None:
    state = torch.load(folder / "full.pt") if torch.distributed.get_rank() == 0 else {}
    set_optimizer_state_dict(module, optimizer, state, options=SENT)


def by_state_dict(module: nn.Module, optimizer: Lion, folder: Path, way: str) -> None:
    optimizer.load_state_dict(torch.load(folder / "numbers.pt"))


def by_convert(module: nn.Module, optimizer: Lion, folder: Path, way: str) -> None:
    optimizer.load_state_dict(lionbits.convert(torch.load(folder / "numbers.pt"), optimizer))


LOADING: dict[str, Callable[[nn.Module, Lion, Path, str], None]] = {
    "dcp": by_dcp,
    "in place": in_place,
    "full_state_dict": by_full_state_dict,
    "broadcast_from_rank0": by_broadcast,
    "state_dict": by_state_dict,
    "convert": by_convert,
}


def loads(way: str, bits: int, folder: Path, method: str) -> None:
    """Into an optimizer that never took a step."""
    if takes_part(WAYS[way]):
        if method == "broadcast_from_rank0" and WAYS[way] not in (4, "2x2"):
            return  # torch sends to all ranks there are
        module, optimizer = build(way, bits)
        values = torch.load(folder / "model.pt")
        with torch.no_grad():
            for name, param in module.named_parameters():
                mesh, placements = getattr(param, "device_mesh", None), getattr(param, "placements", None)
                whole = values[name]
                param.copy_(whole if mesh is None else distribute_tensor(whole, mesh, placements, src_data_rank=None))
        LOADING[method](module, optimizer, folder, way)
        assert_equal(module, optimizer, *expected(bits, 2), f"{way}, loaded by {method}")
        train(module, optimizer, [3, 4])
        assert_equal(module, optimizer, *expected(bits, 4), f"{way}, after two more steps")


@pytest.mark.slow
@pytest.mark.parametrize("saving", WAYS)
@pytest.mark.parametrize("bits", [32, 8, 4])
def test_every_way_to_be_sharded_exchanges_with_every_other(
    world: World, tmp_path: Path, bits: int, saving: str
) -> None:
    """By every way to load."""
    world(saves, saving, bits, tmp_path)
    for loading in WAYS:
        for method in LOADING:
            world(loads, loading, bits, tmp_path, method)
