"""Whole state dicts of other Lions, into and out of sharded optimizers: what a single process reads and writes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lionbits import Lion, interop

from ..family import assert_same
from .problem import SETTINGS, Bag, assert_equal, sharded, train
from .world import World, meshes, takes_part


def optimizer_of(module: nn.Module, bits: int) -> Lion:
    return Lion(module.named_parameters(), **SETTINGS, optim_bits=bits)


def goes_through(ranks: int | str, bits: int) -> None:
    """From plain momentum to here, two steps, and to bitsandbytes and back."""
    if not takes_part(ranks):
        return
    plain, module = Bag(), sharded(Bag(), meshes()[ranks])
    state = {
        i: {"exp_avg": torch.randn(p.shape, generator=torch.Generator().manual_seed(i))}
        for i, p in enumerate(plain.parameters())
    }
    group = {"lr": 0.02, "betas": (0.9, 0.99), "weight_decay": 0.5, "params": list(state)}
    given = {"state": state, "param_groups": [group]}
    one, many = optimizer_of(plain, bits), optimizer_of(module, bits)
    for optimizer in (one, many):
        optimizer.load_state_dict(interop.from_lion_pytorch(given, optimizer))
    assert_equal(module, many, plain, one, "loaded")
    assert interop.compare(given, many) == interop.compare(given, one)
    train(plain, one, [1, 2])
    train(module, many, [1, 2])
    theirs = interop.to_bitsandbytes(one)
    assert_same(interop.to_bitsandbytes(many), theirs)
    for optimizer in (one, many):
        optimizer.load_state_dict(interop.from_bitsandbytes(theirs, optimizer))
    assert_equal(module, many, plain, one, "and back")


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("ranks", [2, 3])
def test_shards_read_and_write_what_the_whole_does(world: World, ranks: int, bits: int) -> None:
    world(goes_through, ranks, bits)
