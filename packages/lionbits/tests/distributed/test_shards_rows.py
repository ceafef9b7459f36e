"""Parameters that are one row, cut by ranks inside blocks and inside bytes: N ranks equal one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.tensor.debug import CommDebugMode

from lionbits import Lion

from ..family import assert_same
from .problem import SETTINGS, Bag, assert_equal, gradient, part, sharded, train, whole
from .world import World, meshes, takes_part

#: Vectors and short rows: cut between blocks, inside them, inside bytes, many ranks in one block, ranks without any.
SHAPES = {
    "vector": (4096,),
    "odd": (1037,),
    "lora": (101, 8),
    "narrow": (103, 7),
    "kernel": (37, 1, 5, 5),
    "short": (40,),
    "few": (3, 20),
    "matrix": (13, 71),
    "plain": (40, 7),
}

KINDS: list[dict[str, Any]] = [
    {"optim_bits": 8},
    {"optim_bits": 4},
    {"optim_bits": 2},
    {"optim_bits": 8, "block_size": 32, "rounding": "stochastic"},
    {"optim_bits": 4, "block_size": 4096, "rounding": "nearest"},
    {"optim_bits": 8, "block_wise": False},
    {"optim_bits": 4, "block_wise": False},
    {"optim_bits": 4, "cautious": "mask", "percentile_clipping": 30, "grad_clip": 2.0},
    {"optim_bits": 8, "nonfinite": "propagate", "cautious": "gradient", "maximize": True},
    {"optim_bits": 4, "is_paged": True, "page_budget": 1024},
]


def equal_one_process(ranks: int, settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """After every step."""
    if takes_part(ranks):
        module = Bag(dtype, SHAPES)
        parts = sharded(module, meshes()[ranks])
        settings = {**SETTINGS, "min_8bit_size": 40, **settings}
        optimizer, other = Lion(module.named_parameters(), **settings), Lion(parts.named_parameters(), **settings)
        for step in (1, 2, 3, 4):
            train(module, optimizer, [step])
            train(parts, other, [step])
            assert_equal(parts, other, module, optimizer, f"{ranks} ranks, step {step}")
        for param, twin in zip(module.parameters(), parts.parameters(), strict=True):
            assert optimizer.state[param].keys() == other.state[twin].keys()


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_ranks_equal_one_process(world: World, settings: dict[str, Any]) -> None:
    """Every way to hold momentum in codes, on any number of ranks."""
    for ranks in (1, 2, 3, 4):
        world(equal_one_process, ranks, settings)


@pytest.mark.parametrize(
    "rounding", [{"param_rounding": "dithered"}, {"param_rounding": "compensated", "master_bits": 24}]
)
def test_ranks_equal_one_process_in_bfloat16(world: World, rounding: dict[str, Any]) -> None:
    """Parameters that are rounded with noise, too."""
    for bits in (8, 4):
        world(equal_one_process, 3, {"optim_bits": bits, **rounding}, torch.bfloat16)


def spoilt_gradients(settings: dict[str, Any]) -> None:
    """Elements that are not finite, in whole and in divided blocks."""
    module = Bag(shapes=SHAPES)
    parts = sharded(module, meshes()[4])
    settings = {**SETTINGS, "min_8bit_size": 40, **settings}
    optimizer, other = Lion(module.named_parameters(), **settings), Lion(parts.named_parameters(), **settings)
    for step in (1, 2):
        for position, (param, twin) in enumerate(zip(module.parameters(), parts.parameters(), strict=True)):
            grad = gradient(param, position, step)
            if step == 1:
                grad.view(-1)[:: max(param.numel() // 3, 1)] = torch.nan
                grad.view(-1)[-1] = -torch.inf
            param.grad, twin.grad = grad, part(grad, twin)
        optimizer.step()
        other.step()
        for name, twin in parts.named_parameters():
            param = module.get_parameter(name)
            for what, got, want in (
                (name, whole(twin), param.detach()),
                (f"momentum of {name}", whole(other.momentum(twin)), optimizer.momentum(param)),
            ):
                assert torch.equal(got.isnan(), want.isnan()), what
                assert_same(got.nan_to_num(nan=0.0), want.nan_to_num(nan=0.0), what)
    assert other.skipped_elements() == optimizer.skipped_elements()


@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
def test_gradients_that_are_not_finite(world: World, nonfinite: str) -> None:
    """With "propagate" a block that cuts divide is lost on all ranks, as it is in one process."""
    for bits in (8, 4):
        world(spoilt_gradients, {"optim_bits": bits, "nonfinite": nonfinite})


def collectives(count: int) -> list[int]:
    """Collective calls in each of three steps, of so many vectors."""
    module = sharded(Bag(shapes={f"vector {j}".replace(" ", "_"): (513 + j,) for j in range(count)}), meshes()[4])
    optimizer = Lion(module.named_parameters(), **SETTINGS, optim_bits=8, cautious="mask", grad_clip=1.0)
    found = []
    for step in (1, 2, 3):
        with CommDebugMode() as watched:
            train(module, optimizer, [step])
        found.append(watched.get_total_counts())
    return found


def test_collective_calls_do_not_grow_with_parameters(world: World) -> None:
    """One for norms, one for aligned elements, one for scales."""
    few, many = world(collectives, 1), world(collectives, 40)
    assert few == many
    assert few[0][1:] == [3, 3]
