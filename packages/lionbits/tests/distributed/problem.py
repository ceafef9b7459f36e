"""The problem that whole and sharded optimizers are given, and how their results are compared: every bit.

Gradients are small multiples of 1/8, so that sums of their squares are exact in whatever order.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lionbits import Lion

from ..family import assert_same

#: Rows that 1, 2 and 4 ranks share evenly; unevenly, with short last blocks and odd rows; fewer rows than ranks; a
#: kernel; what is too small for codes: odd rows of few columns, vectors that are odd, and of fewer elements than ranks.
#: "plain" is sharded nowhere.
SHAPES = {
    "even": (64, 64),
    "uneven": (13, 71),
    "few": (3, 300),
    "kernel": (10, 3, 4, 4),
    "narrow": (13, 7),
    "vector": (33,),
    "pair": (2,),
    "plain": (40, 33),
}

#: What every optimizer here is made with: codes for all but the vectors.
SETTINGS = {"lr": 0.01, "weight_decay": 0.1, "min_8bit_size": 300}


class Bag(nn.Module):
    """Parameters by name, with the same values at every call."""

    def __init__(self, dtype: torch.dtype = torch.float32, shapes: dict[str, Sequence[int]] | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in (shapes or SHAPES).items():
            self.register_parameter(name, nn.Parameter(torch.randn(tuple(shape), generator=generator).to(dtype)))


def sharded(module: nn.Module, mesh: DeviceMesh, **more: Any) -> nn.Module:
    """A copy of the module after fully_shard."""
    twin = copy.deepcopy(module)
    plain = {param for name, param in twin.named_parameters() if name == "plain"}
    return fully_shard(twin, mesh=mesh, ignored_params=plain, **more)


def gradient(param: Tensor, position: int, step: int) -> Tensor:
    """A whole gradient, of the parameter's whole shape."""
    generator = torch.Generator().manual_seed(1000 * step + position)
    noise = torch.randn(tuple(param.shape), generator=generator)
    return (noise * 8).round().clamp(-64, 64).div(8).to(param.dtype)


def part(whole: Tensor, like: Tensor) -> Tensor:
    """What of a whole tensor is on this rank, as a DTensor placed like another."""
    if not isinstance(like, DTensor):
        return whole
    sizes, offsets = compute_local_shape_and_global_offset(whole.shape, like.device_mesh, like.placements)
    local = whole[tuple(slice(o, o + s) for s, o in zip(sizes, offsets, strict=True))].clone()
    shape = {"shape": whole.shape, "stride": whole.stride()}
    return DTensor.from_local(local, like.device_mesh, like.placements, run_check=False, **shape)


def train(module: nn.Module, optimizer: Lion, steps: Sequence[int], without: Sequence[str] = ()) -> None:
    """Steps with the gradients of these numbers, whole or in parts."""
    for step in steps:
        for position, (name, param) in enumerate(module.named_parameters()):
            param.grad = None if name in without else part(gradient(param, position, step), param)
        optimizer.step()
    optimizer.zero_grad()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. A collective call."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def states(optimizer: Lion) -> list[dict[str, Any]]:
    """What the optimizer holds here, in the order of its parameters."""
    return [optimizer.state[param] for group in optimizer.param_groups for param in group["params"]]


def assert_equal(module: nn.Module, optimizer: Lion, there: nn.Module, other: Lion, where: str = "") -> None:
    """Parameters, momentum and counts of both are the same, bit for bit."""
    for (name, param), their in zip(module.named_parameters(), there.parameters(), strict=True):
        assert_same(whole(param), whole(their), f"{where}: {name}")
        assert_same(whole(optimizer.momentum(param)), whole(other.momentum(their)), f"{where}: momentum of {name}")
        steps = [held.state.get(p, {}).get("step", 0) for held, p in ((optimizer, param), (other, their))]
        assert steps[0] == steps[1], f"{where}: steps of {name}: {steps}"
