"""Optimizers made over parameters on the meta device, as ``fully_shard`` is told to be used for large models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import fully_shard

from lionbits import Lion, Lion8bit, PagedLion8bit, fuse_into_backward

from .problem import SETTINGS, Bag, assert_equal, train
from .world import World, meshes


def begins_on_meta(kind: type[Lion], fused: bool) -> None:
    """Made on meta, then real: as an optimizer that was made afterwards. Before, no step is taken."""
    with torch.device("meta"):
        parts = Bag()
    fully_shard(parts, mesh=meshes()[4])
    optimizer = kind(parts.named_parameters(), **SETTINGS)
    assert "e3m4" in repr(optimizer)
    optimizer.init_state()
    assert not optimizer.state
    for param in parts.parameters():
        param.grad = torch.zeros_like(param)
    with pytest.raises(RuntimeError, match=r"\(64, 64\) is on the meta device.*to_empty"):
        optimizer.step()
    assert not optimizer.state
    optimizer.zero_grad()
    with pytest.raises(ValueError, match=r"Bag has parameters on the meta device.*to_empty"):
        fuse_into_backward(parts, optimizer)
    whole = Bag()
    twin = fully_shard(copy.deepcopy(whole), mesh=meshes()[4])
    other = kind(twin.named_parameters(), **SETTINGS)
    if not fused:
        train(twin, other, [1])
        with pytest.raises(ValueError, match=r"\(64, 64\), which is on the meta device here.*to_empty"):
            optimizer.load_state_dict(other.state_dict())
        assert not optimizer.state
    parts.to_empty(device="cpu")
    with torch.no_grad():
        for param, value in zip(parts.parameters(), twin.parameters(), strict=True):
            param.copy_(value)
    if fused:
        fuse_into_backward(parts, optimizer)
    else:
        optimizer.load_state_dict(other.state_dict())
    for step in (2, 3):
        if fused:
            for one in (parts, twin):
                sum((param * (j + step)).sum() for j, param in enumerate(one.parameters())).backward()
            assert all(param.grad is None for param in parts.parameters())
            for held in (optimizer, other):
                held.step()
                held.zero_grad()
        else:
            train(parts, optimizer, [step])
            train(twin, other, [step])
    assert_equal(parts, optimizer, twin, other)


@pytest.mark.filterwarnings("ignore:.*sharded parameter")
@pytest.mark.parametrize(("kind", "fused"), [(Lion8bit, False), (PagedLion8bit, False), (Lion8bit, True)])
def test_an_optimizer_over_meta_parameters(world: World, kind: Any, fused: bool) -> None:
    world(begins_on_meta, kind, fused)
