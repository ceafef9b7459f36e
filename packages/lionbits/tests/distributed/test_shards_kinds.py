"""Other ways to be sharded, and what comes with them: tensor parallelism, paging, copies, refusals, real training."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lionbits import Lion

from ..family import FAMILY, Variant, assert_same
from ..movers import moving
from .problem import SETTINGS, Bag, assert_equal, sharded, states, train, whole
from .world import World, meshes, takes_part


class Block(nn.Module):
    """Two layers, as tensor parallelism splits them: the first by rows of its weight, the second by columns."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(64, 66, dtype=dtype), nn.Linear(66, 40, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(torch.relu(self.up(x)))
        return result


def parallel(dtype: torch.dtype) -> nn.Module:
    mesh = meshes()["2x2"]
    module = parallelize_module(Block(dtype), mesh["inner"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return fully_shard(module, mesh=mesh["outer"])


def gathers_all_rows() -> bool:
    """Whether torch puts together what it has cut: 2.9 leaves out one of 66 rows. Nothing of lionbits runs."""
    there = [whole(param) for param in parallel(torch.float32).parameters()]  # all of them, as every rank has to ask
    return all(map(torch.equal, map(torch.detach, Block().parameters()), there))


def over_tensor_parallelism(settings: dict[str, Any]) -> None:
    dtype = torch.bfloat16 if "param_rounding" in settings else torch.float32
    module, parts = Block(dtype), parallel(dtype)
    settings = {**SETTINGS, "optim_bits": 8, **settings}
    optimizer = Lion(module.named_parameters(), **settings, overrides={"down.weight": {"optim_bits": 32}})
    own_group = {"down.weight": {"lr": SETTINGS["lr"]}}  # as above: noise depends on the position over all groups
    other = Lion(parts.named_parameters(), **settings, overrides=own_group)
    for step in (1, 2, 3):
        train(module, optimizer, [step])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(parts, other, [step])
        messages = [str(warning.message) for warning in caught if "float32 momentum" in str(warning.message)]
        assert len(messages) == (step == 1 and dist.get_rank() == 0)
        assert all("(down.weight)" in message for message in messages)
        assert_equal(parts, other, module, optimizer, f"step {step}")


@pytest.mark.parametrize(
    "settings",
    [
        {"cautious": "mask", "percentile_clipping": 30},
        {"param_rounding": "dithered"},
        {"param_rounding": "compensated", "master_bits": 24, "cautious": "c-optim"},
    ],
    ids=str,
)
def test_fsdp_over_tensor_parallelism(world: World, settings: dict[str, Any]) -> None:
    """Cuts through rows keep float32 momentum, with one warning; columns that begin at odd places draw their noise."""
    if not all(world(gathers_all_rows)):
        pytest.skip("this torch's full_tensor has zeros for some uneven rows, before any step")
    world(over_tensor_parallelism, settings)


def cuts_short_rows(shape: tuple[int, ...], dims: tuple[int, ...], settings: dict[str, Any]) -> None:
    """A parameter that is one row, cut along these dimensions of it, equals the whole one."""
    mesh = meshes()["2x2"] if len(dims) == 2 else meshes()[4]
    module = Bag(torch.bfloat16, {"lora": shape})
    parts = Bag(torch.bfloat16, {"lora": shape})
    parts.lora = nn.Parameter(distribute_tensor(parts.lora.detach(), mesh, [Shard(dim) for dim in dims]))
    settings = {**SETTINGS, "optim_bits": 32, **settings}
    optimizer, other = Lion(module.parameters(), **settings), Lion(parts.parameters(), **settings)
    for step in (1, 2, 3):
        train(module, optimizer, [step])
        train(parts, other, [step])
        assert_equal(parts, other, module, optimizer, f"{shape} cut along {dims}")


@pytest.mark.parametrize(
    "settings", [{"param_rounding": "dithered"}, {"param_rounding": "compensated", "master_bits": 24}], ids=str
)
def test_noise_of_short_rows_that_are_cut(world: World, settings: dict[str, Any]) -> None:
    """Elements draw the noise of their place in the one row, wherever cuts fall: odd places, columns, both."""
    for shape, dims in (((13, 7), (0,)), ((14, 10), (1,)), ((9, 5, 4), (1,)), ((10, 6), (0, 1)), ((40, 64), (1,))):
        world(cuts_short_rows, shape, dims, settings)


def replicates() -> None:
    """A copy on each rank has codes: nothing cuts it."""
    module, parts = Bag(shapes={"lora": (101, 7)}), Bag(shapes={"lora": (101, 7)})
    parts.lora = nn.Parameter(distribute_tensor(parts.lora.detach(), meshes()[4], [Replicate()]))
    settings = {**SETTINGS, "optim_bits": 4}
    optimizer, other = Lion(module.parameters(), **settings), Lion(parts.parameters(), **settings)
    train(module, optimizer, [1, 2])
    train(parts, other, [1, 2])
    assert_equal(parts, other, module, optimizer)
    assert other.state[parts.lora]["exp_avg_codes"].shape == (1, 354)
    other.load_state_dict(copy.deepcopy(other.state_dict()))
    assert_equal(parts, other, module, optimizer)


def test_short_rows_that_are_whole_everywhere_have_codes(world: World) -> None:
    world(replicates)


def paged_equals_resident(budget: int | None, dtype: torch.dtype, settings: dict[str, Any]) -> None:
    module = sharded(Bag(dtype), meshes()[4])
    twin = sharded(Bag(dtype), meshes()[4])
    settings = {**SETTINGS, "optim_bits": 4, **settings}
    optimizer = Lion(module.parameters(), **settings)
    paged = moving(list(twin.parameters()), 512, budget, **settings)
    for step in (1, 2, 3):
        train(module, optimizer, [step])
        train(twin, paged, [step])
        assert_equal(twin, paged, module, optimizer)
    assert paged.paging_stats().pages_in


@pytest.mark.parametrize("budget", [0, 700])
def test_paged_shards_equal_resident_ones(world: World, budget: int) -> None:
    world(paged_equals_resident, budget, torch.float32, {"cautious": "mask", "block_wise": False})
    world(paged_equals_resident, budget, torch.bfloat16, {"param_rounding": "dithered"})


def trains(ranks: int) -> None:
    """The same inputs on every rank: the mean of 1, 2 or 4 equal gradients is that gradient."""
    if takes_part(ranks):
        module, parts = Block(), Block()
        for layer in (parts.up, parts.down):
            fully_shard(layer, mesh=meshes()[ranks])
        fully_shard(parts, mesh=meshes()[ranks])
        settings = {**SETTINGS, "optim_bits": 4, "cautious": "mask"}
        optimizer, other = Lion(module.parameters(), **settings), Lion(parts.parameters(), **settings)
        for step in range(3):
            x = torch.randn(8, 64, generator=torch.Generator().manual_seed(step))
            for model, stepper in ((module, optimizer), (parts, other)):
                model(x).square().sum().backward()
                stepper.step()
                stepper.zero_grad()
        assert_equal(parts, other, module, optimizer)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_forward_backward_step(world: World, ranks: int) -> None:
    world(trains, ranks)


def scales(bad_rank: int) -> None:
    """In the second step the input of one rank is infinite; the whole has all inputs."""
    parts = sharded(Block(), meshes()[4])
    optimizer = Lion(parts.parameters(), **SETTINGS, optim_bits=8, percentile_clipping=50)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(3):
        x = torch.ones(2, 64)
        if step == 1 and dist.get_rank() == bad_rank:
            x[0, 0] = torch.inf
        scaler.scale(parts(x).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert scaler.get_scale() == 4.0
    assert [state["step"] for state in states(optimizer)] == [2] * 4
    assert all(torch.isfinite(whole(param)).all() for param in parts.parameters())


def test_an_overflow_on_one_rank_is_skipped_by_all(world: World) -> None:
    """The loss scaler's word comes to ``step`` from all ranks."""
    world(scales, 2)


def swaps() -> None:
    """As accelerate does: the optimizer is made before the model is sharded, and given the new parameters then."""
    module, parts = Bag(), Bag()
    settings = {**SETTINGS, "optim_bits": 8}
    optimizer, other = Lion(module.parameters(), **settings), Lion(parts.parameters(), **settings)
    other.load_state_dict(other.state_dict())
    fully_shard(parts, mesh=meshes()[4])
    other.param_groups[0]["params"] = list(parts.parameters())
    train(module, optimizer, [1, 2])
    train(parts, other, [1, 2])
    assert_equal(parts, other, module, optimizer)


def test_parameters_swapped_for_sharded_ones(world: World) -> None:
    world(swaps)


def copies(ranks: int, variant: Variant) -> None:
    """All that torch permits. The module itself is another matter: FSDP permits neither deepcopy nor pickle of it."""
    if not takes_part(ranks):
        return
    module = sharded(Bag(), meshes()[ranks])
    settings = {"quant_threshold": 300} if "QLion" in variant.name else {**SETTINGS, "percentile_clipping": 50}
    optimizer = variant(module.parameters(), **settings)
    train(module, optimizer, [1, 2])
    held, given = copy.deepcopy(states(optimizer)), optimizer.state_dict()
    stream = io.BytesIO()
    torch.save(given, stream)
    stream.seek(0)
    for saved in (copy.deepcopy(given), pickle.loads(pickle.dumps(given)), torch.load(stream, weights_only=True)):
        train(module, optimizer, [3])
        optimizer.load_state_dict(saved)
        assert_same(states(optimizer), held)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert_same(states(twin), held)
        params = twin.param_groups[0]["params"]
        for (param, other), grad in zip(
            zip(params, module.parameters(), strict=True), module.parameters(), strict=True
        ):
            assert_same(whole(param), whole(other))
            param.grad = torch.ones_like(grad)
        twin.step()
        assert [state["step"] for state in states(twin)] == [3] * len(params)


@pytest.mark.filterwarnings("ignore:optim_bits=2")
@pytest.mark.parametrize("variant", FAMILY, ids=lambda variant: variant.name)
@pytest.mark.parametrize("ranks", [1, 4])
def test_copies_and_files_of_one_rank(world: World, ranks: int, variant: Variant) -> None:
    """Deepcopy and pickle of optimizer and state dict; torch.save, and torch.load with weights_only=True."""
    world(copies, ranks, variant)


def counts_skips(nonfinite: str) -> None:
    module = sharded(Bag(), meshes()["2x2"])
    optimizer = Lion(module.parameters(), **SETTINGS, optim_bits=8, nonfinite=nonfinite)
    even, plain = dict(module.named_parameters())["even"], dict(module.named_parameters())["plain"]
    for param in (even, plain):
        param.grad = torch.ones_like(param)
    even.grad.to_local()[:, 3] = torch.nan  # in all 64 rows, on whichever rank
    plain.grad[0, :2] = torch.inf
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError, match="66 element"):
            optimizer.step()
    else:
        optimizer.step()
    assert optimizer.skipped_elements() == 66


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_skipped_elements_are_those_of_whole_tensors(world: World, nonfinite: str) -> None:
    """Each once: not again for copies on other ranks."""
    world(counts_skips, nonfinite)


def refuses() -> None:
    mesh = meshes()[4]
    local = torch.ones(64, 64)
    partial = nn.Parameter(DTensor.from_local(local, mesh, [Partial()]))
    with pytest.raises(TypeError, match="Partial"):
        Lion([partial])
    deep = nn.Parameter(DTensor.from_local(torch.ones(4, 4, 4).bfloat16(), mesh, [Shard(2)]))
    with pytest.raises(ValueError, match=r"placements.*beyond the second"):
        Lion([deep], param_rounding="dithered")
    Lion([deep], param_rounding="nearest")
    odd = nn.Parameter(distribute_tensor(torch.ones(4, 7, 3).bfloat16(), mesh, [Shard(1)]))
    with pytest.raises(ValueError, match=r"placements.*\(4, 7, 3\).*even"):
        Lion([odd], param_rounding="dithered")


def test_what_cannot_be_updated_is_refused_by_name(world: World) -> None:
    world(refuses)


def refuses_to_load() -> None:
    module = sharded(Bag(), meshes()[4])
    optimizer = Lion(module.parameters(), **SETTINGS, optim_bits=8)
    train(module, optimizer, [1])
    held = copy.deepcopy(states(optimizer))
    for change in ("placements", "shape", "plain"):
        broken = copy.deepcopy(optimizer.state_dict())
        codes = broken["state"][0]["exp_avg_codes"]
        if change == "placements":
            broken["state"][0]["exp_avg_codes"] = DTensor.from_local(codes.full_tensor(), meshes()[4], [Replicate()])
        elif change == "shape":
            broken["state"][0]["exp_avg_codes"] = broken["state"][1]["exp_avg_codes"]
        else:
            broken["state"][0]["exp_avg_codes"] = codes.to_local()
        with pytest.raises(ValueError, match=r"parameter 0: exp_avg_codes"):
            optimizer.load_state_dict(broken)
        assert_same(states(optimizer), held)
    single = Lion(Bag().parameters(), **SETTINGS, optim_bits=8)
    with pytest.raises(ValueError, match=r"parameter 0: .*distributed.checkpoint"):
        single.load_state_dict(optimizer.state_dict())
    assert not single.state


def test_state_that_does_not_fit_is_refused(world: World) -> None:
    """Other placements, another shape, one rank's part without a word of it; parts for an optimizer that wants all."""
    world(refuses_to_load)
