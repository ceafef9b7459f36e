"""Tensor and sequence parallelism without FSDP, whose gradients are placed otherwise than their parameters."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from lionbits import Lion, fuse_into_backward

from .problem import SETTINGS, assert_equal, gradient
from .world import World, meshes, takes_part

VOCABULARY, WIDTH = 64, 32


class Language(nn.Module):
    """A small language model without attention: an embedding, two norms, an MLP, an output layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.first, self.last = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.first(self.tokens(tokens))
        x = self.last(x + self.down(torch.relu(self.up(x))))
        result: Tensor = self.output(x)
        return result


def in_sequence() -> dict[str, Any]:
    """A plan in which norms see a part of each sequence."""
    return {
        "tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=False),
        "first": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
        "last": SequenceParallel(),
        "output": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False),
    }


def in_columns() -> dict[str, Any]:
    """A plan that cuts the embedding along its columns, and leaves norms as they are on every rank."""
    return {
        "tokens": ColwiseParallel(output_layouts=Replicate()),
        "up": ColwiseParallel(),
        "down": RowwiseParallel(),
        "output": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),
    }


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (4, 17), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def backward(model: nn.Module, step: int) -> None:
    tokens, targets = batch(step)
    with loss_parallel() if any(isinstance(p, DTensor) for p in model.parameters()) else contextlib.nullcontext():
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        loss.backward()


def by_hand(model: nn.Module) -> None:
    """Redistribute every gradient to its parameter's placements, as one has to for optimizers that do not."""
    for param in model.parameters():
        if isinstance(param.grad, DTensor):
            param.grad = param.grad.redistribute(param.device_mesh, param.placements)


def trains_in_parallel(plan: Callable[[], dict[str, Any]], settings: dict[str, Any], fused: bool) -> None:
    if not takes_part(2):
        return
    mesh = meshes()[2]
    model, twin = (parallelize_module(Language(), mesh, plan()) for _ in range(2))
    cut_through_blocks = {"down.weight": {"optim_bits": 32}, "tokens.weight": {"optim_bits": 32}}
    settings = {**SETTINGS, "min_8bit_size": 2000, "overrides": cut_through_blocks, **settings}
    optimizer, plain = (Lion(one.named_parameters(), **settings) for one in (model, twin))
    if fused:
        fuse_into_backward(model, optimizer)
    kept = None
    for step in (1, 2, 3):
        backward(model, step)
        placed = [getattr(param.grad, "placements", None) for param in model.parameters()]
        optimizer.step()
        assert placed == [getattr(param.grad, "placements", None) for param in model.parameters()]
        kept = kept or optimizer._step_cache
        assert optimizer._step_cache is kept
        optimizer.zero_grad()
        backward(twin, step)
        by_hand(twin)
        plain.step()
        plain.zero_grad()
        assert_equal(model, optimizer, twin, plain, f"step {step}")


@pytest.mark.parametrize(
    ("fused", "settings"),
    [(False, {"cautious": "mask", "percentile_clipping": 50}), (True, {"grad_clip": 0.01}), (False, {"optim_bits": 8})],
    ids=str,
)
@pytest.mark.parametrize("plan", [in_sequence, in_columns])
def test_tensor_parallelism_alone(world: World, plan: Any, settings: dict[str, Any], fused: bool) -> None:
    """Equal to redistribution by hand; sequence parallelism, embeddings and loss parallelism are in the plans."""
    world(trains_in_parallel, plan, settings, fused)


def equals_one_process(settings: dict[str, Any]) -> None:
    """Replicated parameters, of which each rank saw a part of the batch; gradients are exact sums."""
    if not takes_part(2):
        return
    mesh = meshes()[2]
    torch.manual_seed(0)
    alone = nn.Linear(64, 8)
    parts = distribute_module(copy.deepcopy(alone), mesh)
    optimizer, other = (Lion(one.parameters(), **SETTINGS, **settings) for one in (alone, parts))
    for step in (1, 2, 3):
        generator = torch.Generator().manual_seed(step)
        x = torch.randint(-8, 9, (6, 64), generator=generator) / 8
        weight = torch.randint(-8, 9, (6, 8), generator=generator) / 8
        (alone(x) * weight).sum().backward()
        output = parts(distribute_tensor(x, mesh, [Shard(0)]))
        (output * distribute_tensor(weight, mesh, [Shard(0)])).sum().backward()
        assert any(p.grad.placements[0].is_partial() for p in parts.parameters())
        for one in (optimizer, other):
            one.step()
            one.zero_grad()
        assert_equal(parts, other, alone, optimizer, f"step {step}")


@pytest.mark.parametrize("settings", [{"optim_bits": 4}, {"cautious": "mask", "grad_clip": 0.5}], ids=str)
def test_distribute_module_with_a_sharded_batch_equals_one_process(world: World, settings: dict[str, Any]) -> None:
    """Bit for bit."""
    world(equals_one_process, settings)


def placements(mesh: str | int, bits: int) -> Iterator[tuple[Any, Any]]:
    kinds = (Shard(0), Shard(1), Replicate())
    for here in kinds if bits == 32 else (Shard(0), Replicate()):  # cuts through blocks keep float32 momentum
        for there in (*kinds, Partial()):
            yield ([here], [there]) if mesh == 2 else ([here, Replicate()], [there, Partial()])


def moves_every_kind(mesh: str | int, bits: int) -> None:
    """Of any placements to any: as the whole gradient gives; what is placed already costs no call of another rank."""
    if not takes_part(mesh):
        return
    for here, there in placements(mesh, bits):
        alone = nn.Linear(64, 8, bias=False)
        start = gradient(alone.weight, 0, 7)
        alone.weight.data.copy_(start)
        parts = nn.Module()
        parts.weight = nn.Parameter(distribute_tensor(start, meshes()[mesh], here))
        optimizer, other = (Lion(one.parameters(), **SETTINGS, optim_bits=bits) for one in (alone, parts))
        for step in (1, 2):
            whole = gradient(alone.weight, 0, step)
            alone.weight.grad = whole
            parts.weight.grad = distribute_tensor(whole, meshes()[mesh], there)
            optimizer.step()
            with CommDebugMode() as calls:
                other.step()
        needed = sum(1 for a, b in zip(here, there, strict=True) if a != b and not b.is_replicate())
        assert (calls.get_total_counts() > 0) == (needed > 0), (here, there)
        assert_equal(parts, other, alone, optimizer, f"{here} of {there}")


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("mesh", [2, "2x2"])
def test_gradients_come_to_the_placements_of_parameters(world: World, mesh: Any, bits: int) -> None:
    world(moves_every_kind, mesh, bits)


def refuses() -> None:
    mesh, other = meshes()[4], DeviceMesh("cpu", torch.arange(4).flip(0))
    param = nn.Parameter(distribute_tensor(torch.ones(8, 8), mesh, [Replicate()]))
    param.grad = distribute_tensor(torch.ones(8, 8), other, [Replicate()])
    optimizer = Lion([param])
    with pytest.raises(RuntimeError, match=r"gradient .*\(8, 8\).*one mesh"):
        optimizer.step()
    assert not optimizer.state
    with pytest.MonkeyPatch.context() as monkeypatch:

        def redistribute(*_: Any) -> None:
            raise NotImplementedError("not between these")

        param.grad = distribute_tensor(torch.ones(8, 8), mesh, [Shard(0)])
        monkeypatch.setattr(DTensor, "redistribute", redistribute)
        with pytest.raises(RuntimeError, match=r"gradient .*Shard.*Replicate.*cannot redistribute it: not between"):
            optimizer.step()
    assert not optimizer.state
    optimizer.step()
    assert optimizer.state[param]["step"] == 1


def test_what_cannot_be_moved_is_refused_by_name(world: World) -> None:
    world(refuses)
