"""Every class of the family, as torchao checks low-bit optimizers under FSDP2 and torch its distributed state dicts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard

from lionbits import Lion, QLion

from ..family import FAMILY, Variant, assert_same
from .problem import assert_equal, part, states
from .world import World, meshes, takes_part

classes = pytest.mark.parametrize("variant", FAMILY, ids=lambda variant: variant.name)


class Layers(nn.Module):
    """Embeddings, blocks and a head, whose rows some numbers of ranks do not share evenly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(37, 40)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(40, 66), nn.GELU(), nn.Linear(66, 40)) for _ in range(2))
        self.head = nn.Linear(40, 13)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(x)
        result: Tensor = self.head(x)
        return result


def made(variant: Variant, module: nn.Module, **more: Any) -> Lion:
    """An optimizer with codes for all but the vectors, and with history."""
    small = {"quant_threshold": 299} if variant.cls is QLion else {"min_8bit_size": 300}
    return variant(module.parameters(), **{"lr": 0.01, "weight_decay": 0.1, "percentile_clipping": 50, **small, **more})


def cut(ranks: int) -> nn.Module:
    """The model over so many ranks, each block of its own and then the rest, as torchtitan does it."""
    module = Layers()
    for layer in module.blocks:
        fully_shard(layer, mesh=meshes()[ranks])
    return fully_shard(module, mesh=meshes()[ranks])


def training_step(module: nn.Module, optimizer: Lion, step: int) -> Tensor:
    """Forward, backward, step, with the same tokens on every rank; returns the loss."""
    tokens = torch.randint(0, 37, (4, 9), generator=torch.Generator().manual_seed(step))
    loss = nn.functional.cross_entropy(module(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten() % 13)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def trains(ranks: int, variant: Variant) -> None:
    """Losses, weights, momentum and counts are those of one process: the mean of equal gradients is each of them."""
    if takes_part(ranks):
        module, parts = Layers(), cut(ranks)
        optimizer, other = made(variant, module), made(variant, parts)
        for step in range(4):
            assert_same(training_step(parts, other, step), training_step(module, optimizer, step))
        assert_equal(parts, other, module, optimizer)


@classes
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_training_on_ranks_is_that_of_one_process(world: World, ranks: int, variant: Variant) -> None:
    world(trains, ranks, variant)


def alone(variant: Variant) -> tuple[nn.Module, Lion]:
    """What one process has after two steps."""
    module = Layers()
    optimizer = made(variant, module)
    for step in range(2):
        training_step(module, optimizer, step)
    return module, optimizer


#: How a model may stand when its state dict is taken or set.
FORMS: dict[str, Callable[[], nn.Module]] = {
    "plain": Layers,
    "DDP": lambda: nn.parallel.DistributedDataParallel(Layers(), process_group=meshes()[2].get_group()),
    "compiled": lambda: torch.compile(Layers(), backend="eager"),
    "sharded": lambda: cut(2),
}

OPTIONS = {"nested": {}, "flat": {"flatten_optimizer_state_dict": True}, "full": {"full_state_dict": True}}


def settings(optimizer: Lion) -> list[dict[str, Any]]:
    """The groups of its state dict; torch makes lists of tuples where it gathers a full one."""
    return [{**group, "betas": tuple(group["betas"])} for group in optimizer.state_dict()["param_groups"]]


def hands_over(variant: Variant, form: str) -> None:
    """To a fresh model of the same form, in every kind of state dict: all state, all settings, and the next step."""
    if not takes_part(2):
        return
    for name, chosen in OPTIONS.items():
        options = StateDictOptions(**chosen)
        module, twin = FORMS[form](), FORMS[form]()
        optimizer, fresh = made(variant, module), made(variant, twin, lr=0.5)
        for step in range(2):
            training_step(module, optimizer, step)
        state = copy.deepcopy(get_optimizer_state_dict(module, optimizer, options=options))
        named = {key for key, _ in Layers().named_parameters()}
        if name == "flat":
            assert {f"state.{key}.step" for key in named} <= state.keys()
        else:
            assert state["state"].keys() == named
        set_model_state_dict(twin, copy.deepcopy(get_model_state_dict(module, options=options)), options=options)
        set_optimizer_state_dict(twin, fresh, state, options=options)
        assert_same(states(fresh), states(optimizer), name)
        assert_same(settings(fresh), settings(optimizer))
        for model, stepper in ((module, optimizer), (twin, fresh)):
            training_step(model, stepper, 2)
        whole, reference = alone(variant)
        training_step(whole, reference, 2)
        assert_equal(twin, fresh, whole, reference, name)


@classes
@pytest.mark.parametrize("form", FORMS)
def test_state_dicts_go_from_one_model_to_another(world: World, form: str, variant: Variant) -> None:
    """By name, without what DDP and torch.compile put before it."""
    world(hands_over, variant, form)


def saves(folder: str, ranks: int, variant: Variant) -> None:
    if takes_part(ranks):
        module = cut(ranks)
        optimizer = made(variant, module)
        for step in range(2):
            training_step(module, optimizer, step)
        model_state, state = get_state_dict(module, optimizer)
        group = meshes()[ranks].get_group()
        dcp.save({"model": model_state, "optim": state}, checkpoint_id=folder, process_group=group)


def loads(folder: str, ranks: int, variant: Variant, sets: bool, runs: bool) -> None:
    """Into a fresh optimizer or one that took other steps; in place alone, or and set.

    In place alone settings stay the optimizer's, so it is made with those that were saved.
    """
    if takes_part(ranks):
        module = cut(ranks)
        optimizer = made(variant, module, **({"lr": 0.5, "seed": 7} if sets else {}))
        if runs:
            for step in (7, 8, 9):
                training_step(module, optimizer, step)
        else:
            optimizer.init_state()
        model_state, state = get_state_dict(module, optimizer)
        held = {"model": model_state, "optim": state}
        dcp.load(held, checkpoint_id=folder, process_group=meshes()[ranks].get_group())
        if sets:
            set_state_dict(module, optimizer, model_state_dict=held["model"], optim_state_dict=held["optim"])
        whole, reference = alone(variant)
        assert_equal(module, optimizer, whole, reference, "loaded")
        for model, stepper in ((module, optimizer), (whole, reference)):
            training_step(model, stepper, 2)
        assert_equal(module, optimizer, whole, reference, "continued")


@pytest.mark.slow
@classes
@pytest.mark.parametrize("sets", [True, False], ids=["and set", "in place alone"])
@pytest.mark.filterwarnings("ignore:load_state_dict takes settings:UserWarning")
def test_a_distributed_checkpoint_is_loaded(world: World, tmp_path: Path, sets: bool, variant: Variant) -> None:
    """Saved on two ranks, loaded on two and four, of which the mean of equal gradients is exact."""
    world(saves, str(tmp_path), 2, variant)
    for ranks in (2, 4):
        for runs in (False, True):
            world(loads, str(tmp_path), ranks, variant, sets, runs)


def starts_from_part(variant: Variant) -> None:
    """Gradients that are handed over in parts, of a parameter that some ranks have nothing of, as torchao tries it."""
    shape = {"few": (3, 300)}
    module, parts = nn.Module(), nn.Module()
    for each in (module, parts):
        values = torch.randn(shape["few"], generator=torch.Generator().manual_seed(0))
        each.register_parameter("few", nn.Parameter(values))
    fully_shard(parts, mesh=meshes()[4])
    optimizer, other = made(variant, module), made(variant, parts)
    for step in range(3):
        grad = torch.randn(shape["few"], generator=torch.Generator().manual_seed(step)).mul(8).round().div(8)
        module.few.grad, parts.few.grad = grad, part(grad, parts.few)
        optimizer.step()
        other.step()
    assert_equal(parts, other, module, optimizer)


@classes
def test_ranks_may_have_nothing_of_a_parameter(world: World, variant: Variant) -> None:
    world(starts_from_part, variant)
