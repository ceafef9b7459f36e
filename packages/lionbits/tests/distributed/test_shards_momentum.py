"""``set_momentum``, ``step_parameter`` and partial loading on shards: as on the whole, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch

from lionbits import Lion

from .problem import SETTINGS, Bag, assert_equal, sharded, train
from .world import World, meshes, takes_part


def set_on_shards(ranks: int, bits: int) -> None:
    """From a DTensor placed like the parameter, and from a whole tensor; before and after the first step."""
    if not takes_part(ranks):
        return
    for begun in (False, True):
        whole = Bag()
        parts = sharded(whole, meshes()[ranks])
        one, other = (Lion(model.parameters(), **{**SETTINGS, "optim_bits": bits}) for model in (whole, parts))
        if begun:
            for model, optimizer in ((whole, one), (parts, other)):
                train(model, optimizer, range(2))
        for position, (first, second) in enumerate(zip(whole.parameters(), parts.parameters(), strict=True)):
            other.set_momentum(second, other.momentum(second))
            wanted = torch.randn(first.shape, generator=torch.Generator().manual_seed(position))
            one.set_momentum(first, wanted)
            other.set_momentum(second, wanted)
        assert_equal(whole, one, parts, other, "set")
        for model, optimizer in ((whole, one), (parts, other)):
            train(model, optimizer, range(2, 4))
        assert_equal(whole, one, parts, other, "trained")
        with pytest.raises(ValueError, match=r"momentum=\(1, 2\)"):
            other.set_momentum(next(parts.parameters()), torch.zeros(1, 2))


def tensor_wise_on_shards() -> None:
    """Nothing has changed."""
    module = sharded(Bag(), meshes()[4])
    optimizer = Lion(module.parameters(), **SETTINGS, optim_bits=8, block_wise=False)
    train(module, optimizer, range(1))
    param = next(module.parameters())
    before = copy.deepcopy(optimizer.state[param])
    with pytest.raises(ValueError, match="has a scale that no part of a tensor tells"):
        optimizer.set_momentum(param, torch.zeros(param.shape))
    assert torch.equal(before["exp_avg_codes"], optimizer.state[param]["exp_avg_codes"])


def parameters_alone(ranks: int, bits: int) -> None:
    """Each is updated alone, in one order on all ranks."""
    if not takes_part(ranks):
        return
    whole = Bag()
    parts = sharded(whole, meshes()[ranks])
    settings = {**SETTINGS, "optim_bits": bits, "grad_clip": 0.5, "cautious": "mask"}
    one, other = (Lion(model.parameters(), **settings) for model in (whole, parts))
    stepped = other.step

    def step() -> None:
        for i, param in enumerate(parts.parameters()):
            other.step_parameter(param, other.param_groups[0], i)
            param.grad = None
        stepped()

    other.step = step  # type: ignore[method-assign, assignment]
    for model, optimizer in ((whole, one), (parts, other)):
        train(model, optimizer, range(3))
    assert_equal(whole, one, parts, other)


def partly_on_shards(ranks: int, bits: int) -> None:
    """A whole state dict with names that are unexpected, over parts; what is missing keeps its state."""
    if not takes_part(ranks):
        return
    whole = Bag()
    parts = sharded(whole, meshes()[ranks])
    held = []
    for model in (whole, parts):
        some = [
            (name if position % 2 else f"new.{name}", p) for position, (name, p) in enumerate(model.named_parameters())
        ]
        held.append(Lion(some, **{**SETTINGS, "optim_bits": bits}))
        train(model, held[-1], range(3))
    source = Bag()
    before = Lion(source.named_parameters(), **{**SETTINGS, "optim_bits": bits})
    train(source, before, range(5, 7))
    found = [optimizer.load_state_dict(before.state_dict(), strict=False) for optimizer in held]
    assert found[0] == found[1]
    assert found[0] is not None
    assert (len(found[0].matched_keys), len(found[0].missing_keys)) == (4, 4)
    assert_equal(whole, held[0], parts, held[1], "loaded")
    for model, optimizer in zip((whole, parts), held, strict=True):
        train(model, optimizer, range(3, 5))
    assert_equal(whole, held[0], parts, held[1], "trained")


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_state_dict_is_loaded_partly_on_shards(world: World, ranks: int, bits: int) -> None:
    world(partly_on_shards, ranks, bits)


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("ranks", [1, 4])
def test_momentum_is_set_on_shards(world: World, ranks: int, bits: int) -> None:
    world(set_on_shards, ranks, bits)


def test_one_scale_for_all_parts_is_refused(world: World) -> None:
    world(tensor_wise_on_shards)


@pytest.mark.parametrize("bits", [32, 8])
def test_parameters_by_themselves(world: World, bits: int) -> None:
    world(parameters_alone, 2, bits)
