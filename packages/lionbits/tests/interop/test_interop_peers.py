"""Lions that keep plain momentum, the real ones where they are installed: in, out, and on from there as before."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion4bit, Lion8bit, Lion32bit, interop

from ..family import assert_same, snapshot, train, weights


def _imported(module: str) -> ModuleType:
    """A peer's module. timm's optimizers need nothing of timm, and ``import timm`` wants torchvision."""
    top, _, rest = module.partition(".")
    found = importlib.util.find_spec(top)
    if found is None:
        pytest.skip(f"{top} is not installed")
    if top == "timm" and "_timm_alone" not in sys.modules:
        alone = ModuleType("_timm_alone")
        alone.__path__ = [str(Path(path, "optim")) for path in found.submodule_search_locations or ()]
        sys.modules["_timm_alone"] = alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside somebody else's import
        return importlib.import_module(f"_timm_alone.{rest.rpartition('.')[2]}" if top == "timm" else module)


#: name -> (module, function in, function out, its settings for an exact comparison)
PEERS: dict[str, tuple[str, Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "lion-pytorch": ("lion_pytorch", interop.from_lion_pytorch, interop.to_lion_pytorch, {}),
    "timm": ("timm.optim.lion", interop.from_timm, interop.to_timm, {"foreach": False}),
    "pytorch-optimizer": (
        "pytorch_optimizer",
        interop.from_pytorch_optimizer,
        interop.to_pytorch_optimizer,
        {"foreach": False},
    ),
    "optimi": ("optimi", interop.from_optimi, interop.to_optimi, {"foreach": False}),
}


def peer(name: str, params: list[nn.Parameter], **more: Any) -> torch.optim.Optimizer:
    module, _, _, settings = PEERS[name]
    made: torch.optim.Optimizer = _imported(module).Lion(params, **{"lr": 0.002, **settings, **more})
    return made


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_from_there_here_and_back_is_exact(name: str, dtype: torch.dtype) -> None:
    """Momentum, learning rate, betas and decay arrive; what is written back is what it saved, for it to load."""
    params = weights(dtype)
    theirs = peer(name, params, betas=(0.95, 0.98), weight_decay=0.3)
    train(theirs, params, range(3))
    given = theirs.state_dict()
    assert interop.recognise(given) == name
    ours = Lion32bit(params)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = PEERS[name][1](given, ours)
    assert bool(caught) == (name == "optimi" and dtype != torch.float32)  # its Kahan compensation
    assert all("kahan_comp" in str(one.message) and one.filename == __file__ for one in caught)
    ours.load_state_dict(made)
    for param in params:
        assert_same(ours.momentum(param), theirs.state[param]["exp_avg"].float())
    group = ours.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.002, (0.95, 0.98), 0.3)

    written = PEERS[name][2](ours)
    assert interop.recognise(written) == name
    fresh_params = [nn.Parameter(param.detach().clone()) for param in params]
    fresh = peer(name, fresh_params)
    fresh.load_state_dict(written)
    for one, other in zip(params, fresh_params, strict=True):
        assert_same(fresh.state[other]["exp_avg"], theirs.state[one]["exp_avg"])
    if dtype == torch.float32:  # elsewhere optimi's compensation was lost
        train(theirs, params, [3, 4])
        train(fresh, fresh_params, [3, 4])
        assert_same(fresh_params, params)


@pytest.mark.parametrize("name", PEERS)
def test_what_it_saved_before_its_first_step_is_read(name: str) -> None:
    params = weights()
    given = peer(name, params, weight_decay=0.3).state_dict()
    ours = Lion8bit(params)
    ours.load_state_dict(PEERS[name][1](given, ours))
    assert not ours.state
    assert ours.param_groups[0]["weight_decay"] == 0.3


@pytest.mark.parametrize("name", PEERS)
def test_load_state_dict_names_the_function(name: str) -> None:
    params = weights()
    theirs, ours = peer(name, params), Lion32bit(params)
    train(theirs, params, [0])
    before = snapshot(ours)
    with pytest.raises(ValueError, match=rf"form of {name}.*lionbits\.interop\.{PEERS[name][1].__name__}\("):
        ours.load_state_dict(theirs.state_dict())
    assert_same(snapshot(ours), before)


def test_settings_that_both_have_are_carried_over() -> None:
    """Caution and maximize, under each one's own name for them."""
    params = weights()
    ours = Lion8bit(params)
    for name, theirs, mine in (
        ("timm", {"caution": True, "maximize": True}, {"cautious": "timm", "maximize": True}),
        ("timm", {}, {"cautious": None, "maximize": False}),
        ("pytorch-optimizer", {"cautious": True}, {"cautious": "c-optim"}),
    ):
        given = peer(name, params, **theirs).state_dict()
        ours.load_state_dict(PEERS[name][1](given, ours))
        assert {key: ours.param_groups[0][key] for key in mine} == mine
        back = PEERS[name][2](ours)["param_groups"][0]
        assert {key: back[key] for key in theirs} == theirs


def test_pytorch_optimizers_count_of_steps_is_kept() -> None:
    params = weights()
    theirs = peer("pytorch-optimizer", params)
    train(theirs, params, range(5))
    ours = Lion4bit(params)
    ours.load_state_dict(interop.from_pytorch_optimizer(theirs.state_dict(), ours))
    assert {int(state["step"]) for state in ours.state.values()} == {5}
    assert interop.to_pytorch_optimizer(ours)["param_groups"][0]["step"] == 5


@pytest.mark.parametrize(
    ("name", "settings", "read"),
    [
        ("corrected_weight_decay", {"corrected_weight_decay": True}, interop.from_timm),
        ("weight_decouple", {"weight_decouple": False}, interop.from_pytorch_optimizer),
        ("fixed_decay", {"fixed_decay": True}, interop.from_pytorch_optimizer),
        ("decouple_lr", {"decouple_lr": True}, interop.from_optimi),
    ],
)
def test_decay_by_another_rule_is_refused_where_there_is_decay(
    name: str, settings: dict[str, Any], read: Callable[..., Any]
) -> None:
    group = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.1, "params": [0, 1, 2, 3], **settings}
    ours = Lion8bit(weights())
    with pytest.raises(ValueError, match=name):
        read({"state": {}, "param_groups": [group]}, ours)
    read({"state": {}, "param_groups": [{**group, "weight_decay": 0.0}]}, ours)


def test_what_a_peer_cannot_carry_on_is_reported() -> None:
    """Once, in words, at the caller's line; and nothing is said where nothing is lost."""
    params = weights(torch.bfloat16)
    ours = Lion8bit(params, cautious="mask", grad_clip=1.0, percentile_clipping=90, param_rounding="compensated")
    train(ours, params, [0])
    lost = r"cautious='mask', grad_clip=1.0, param_residual, .*, percentile_clipping=90"
    with pytest.warns(UserWarning, match=lost) as caught:
        interop.to_bitsandbytes(ours)
    assert (len(caught), caught[0].filename) == (1, __file__)
    with pytest.warns(UserWarning, match="cautious='mask'"):
        interop.to_timm(ours)
    params = weights()
    ours = Lion8bit(params, cautious="timm", maximize=True)
    train(ours, params, [0])
    interop.to_timm(ours)
