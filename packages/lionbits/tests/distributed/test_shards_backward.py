"""``fuse_into_backward`` with FSDP2, whose gradients are there when they are reduced, not when autograd has them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from lionbits import Lion, fuse_into_backward

from .problem import SETTINGS, assert_equal
from .world import World, meshes, takes_part


def fused_equals_step(ranks: int, bits: int, min_8bit_size: int) -> None:
    """Every rank has inputs of its own; all parameters are updated when backward ends, and no gradient is left."""
    if not takes_part(ranks):
        return
    held = []
    for fused in (False, True):
        torch.manual_seed(0)
        layers = [nn.Linear(a, b) for a, b in pairwise((40, 65, 130, 40))]
        model = nn.Sequential(*layers)
        for layer in layers:
            fully_shard(layer, mesh=meshes()[ranks])
        fully_shard(model, mesh=meshes()[ranks])
        optimizer = Lion(model.parameters(), **{**SETTINGS, "optim_bits": bits, "min_8bit_size": min_8bit_size})
        if fused:
            fuse_into_backward(model, optimizer)
        for step in range(3):
            generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
            (model(torch.randn(8, 40, generator=generator)) ** 2).mean().backward()
            if fused:
                assert all(param.grad is None for param in model.parameters())
                assert len(optimizer.state) == 6
            optimizer.step()
            optimizer.zero_grad()
        held += [model, optimizer]
    assert_equal(*held)


@pytest.mark.parametrize(("bits", "min_8bit_size"), [(32, 300), (8, 300), (8, 40), (4, 40)])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_fused_shards_equal_a_step_after_backward(world: World, ranks: int, bits: int, min_8bit_size: int) -> None:
    """Bit for bit; with vectors in codes, too, whose blocks ranks share."""
    world(fused_equals_step, ranks, bits, min_8bit_size)
