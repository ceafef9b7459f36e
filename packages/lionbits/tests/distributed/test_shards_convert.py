"""``lionbits.convert`` of sharded optimizers: each rank converts its part, which is what is cut from the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lionbits import Lion, Lion8bit, convert, float32_parameters

from ..family import assert_same
from .problem import SETTINGS, Bag, assert_equal, sharded, train, whole
from .world import World, meshes, takes_part

DTYPES: dict[torch.dtype, dict[str, Any]] = {torch.float32: {}, torch.bfloat16: {"param_rounding": "compensated"}}


def converts(dtype: torch.dtype, there: int, here: int) -> None:
    """From parts, and from a whole state dict, to parts; and on, a step with each."""
    if not takes_part(3):
        return
    settings = {**SETTINGS, **DTYPES[dtype]}
    plain, parts = Bag(dtype), sharded(Bag(dtype), meshes()[3])
    olds = [Lion(module.parameters(), optim_bits=there, **settings) for module in (plain, parts)]
    for module, old in zip((plain, parts), olds, strict=True):
        train(module, old, [1, 2])
    wanted = Lion(plain.parameters(), optim_bits=here, **settings)
    wanted.load_state_dict(convert(olds[0].state_dict(), wanted))
    for old in olds:
        got = Lion(parts.parameters(), optim_bits=here, **settings)
        got.load_state_dict(convert(old.state_dict(), got))
        assert_equal(parts, got, plain, wanted, f"{there} to {here} bits")
    train(plain, wanted, [3])
    train(parts, got, [3])
    assert_equal(parts, got, plain, wanted, "the next step")


@pytest.mark.parametrize(("there", "here"), [(32, 8), (8, 4), (4, 32), (8, 8)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_are_converted_as_the_whole_is(world: World, dtype: torch.dtype, there: int, here: int) -> None:
    world(converts, dtype, there, here)


def keeps(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Parts go on with settings of their own as the whole does: the rest begins, goes, or changes its width."""
    if not takes_part(3):
        return
    modules = Bag(torch.bfloat16), sharded(Bag(torch.bfloat16), meshes()[3])
    made = []
    for module in modules:
        first = Lion8bit(module.parameters(), **SETTINGS, **old)
        train(module, first, [1, 2])
        made.append(Lion8bit(module.parameters(), **SETTINGS, **new))
        made[-1].load_state_dict(convert(first.state_dict(), made[-1], keep=made[-1].defaults))
        train(module, made[-1], [3])
    (plain, parts), (wanted, got) = modules, made
    assert_equal(parts, got, plain, wanted, f"{old} to {new}")
    assert_same(float32_parameters(plain, wanted), {k: whole(v) for k, v in float32_parameters(parts, got).items()})


COMPENSATED = {"param_rounding": "compensated"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, COMPENSATED),
        (COMPENSATED, {"param_rounding": "dithered"}),
        (COMPENSATED, {**COMPENSATED, "master_bits": 24}),
    ],
)
def test_parts_keep_settings_as_the_whole_does(world: World, old: dict[str, Any], new: dict[str, Any]) -> None:
    world(keeps, old, new)


def refuses() -> None:
    if not takes_part(2):
        return
    parts = sharded(Bag(), meshes()[2])
    old = Lion(parts.parameters(), optim_bits=8, **SETTINGS)
    train(parts, old, [1])
    new = Lion(parts.parameters(), optim_bits=8, block_wise=False, **SETTINGS)
    with pytest.raises(ValueError, match="Convert a full state dict"):
        convert(old.state_dict(), new)
    assert not new.state


def test_one_scale_for_all_parts_is_refused(world: World) -> None:
    world(refuses)
