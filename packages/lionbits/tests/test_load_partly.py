"""``load_state_dict(..., strict=False)``: by name, what both sides have; what did not match is returned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lionbits
from lionbits import Lion, Lion8bit, LoadedKeys, PagedLion8bit, interop

from .family import Variant, assert_same, snapshot, train, weights

Named = list[tuple[str, nn.Parameter]]


def named(names: str, dtype: torch.dtype = torch.float32) -> Named:
    return list(zip(names, weights(dtype, [(64, 64)] * len(names)), strict=True))


def trained(make: Callable[..., Lion], params: Any, steps: int = 2, **more: Any) -> Lion:
    """An optimizer after some steps, whose gradients depend on the place of a parameter."""
    optimizer = make(params, lr=0.01, **more)
    train(optimizer, [param for group in optimizer.param_groups for param in group["params"]], range(steps))
    return optimizer


def states(optimizer: Lion) -> dict[str, Any]:
    """The state of each parameter, by name."""
    state_dict = copy.deepcopy(optimizer.state_dict())
    pairs = [pair for g in state_dict["param_groups"] for pair in zip(g["param_names"], g["params"], strict=True)]
    return {name: state_dict["state"].get(key) for name, key in pairs}


def test_some_match_some_are_missing_some_unexpected(variant: Variant) -> None:
    """What matched has the checkpoint's state and settings; what is missing keeps its own; the rest is reported."""
    before = trained(variant, named("abcd"), weight_decay=0.1)
    target = trained(variant, named("xcya"), steps=3, weight_decay=0.5)
    old, own = states(before), states(target)
    found = target.load_state_dict(before.state_dict(), strict=False)
    assert found == LoadedKeys(["c", "a"], ["x", "y"], ["b", "d"])
    assert_same(states(target), {"x": own["x"], "c": old["c"], "y": own["y"], "a": old["a"]})
    assert target.param_groups[0]["weight_decay"] == 0.1
    assert target.param_groups[0]["param_names"] == list("xcya")
    params = target.param_groups[0]["params"]
    train(target, params, range(2))
    assert [int(target.state[param]["step"]) for param in params] == [5, 4, 5, 4]


def test_what_is_missing_may_be_fresh() -> None:
    before = trained(Lion8bit, named("ab"))
    target = Lion8bit(named("bc"))
    assert target.load_state_dict(before.state_dict(), strict=False) == (["b"], ["c"], ["a"])
    assert list(states(target).values())[1] is None
    train(target, target.param_groups[0]["params"], range(2))


def test_where_all_match_it_is_the_strict_load(variant: Variant) -> None:
    """Order and groups apart."""
    before = trained(variant, named("abc"), percentile_clipping=50)
    strict, loose = variant(named("cab")), variant(named("cab"))
    assert strict.load_state_dict(before.state_dict()) is None
    assert loose.load_state_dict(before.state_dict(), strict=False) == (["c", "a", "b"], [], [])
    assert_same(loose.state_dict(), strict.state_dict())


def test_groups_take_the_settings_of_the_groups_that_their_parameters_come_from() -> None:
    """A group without a match keeps its settings, but for the seed, of which an optimizer has one."""
    a, b, c, d = named("abcd")
    before = trained(Lion8bit, [{"params": [a, b], "weight_decay": 0.5}, {"params": [c, d]}], seed=7)
    groups = [{"params": named("dx")}, {"params": named("ab"), "lr": 0.25}, {"params": [*named("yz")], "lr": 0.75}]
    target = Lion8bit(groups, weight_decay=0.125)
    found = target.load_state_dict(before.state_dict(), strict=False)
    assert found == (["d", "a", "b"], ["x", "y", "z"], ["c"])
    assert [group["lr"] for group in target.param_groups] == [0.01, 0.01, 0.75]
    assert [group["weight_decay"] for group in target.param_groups] == [0.0, 0.5, 0.125]
    assert [group["seed"] for group in target.param_groups] == [7, 7, 7]
    assert target.defaults["seed"] == 7


def test_resident_and_paged_and_compensated() -> None:
    """State goes where the optimizer keeps it, the rest of compensated parameters included."""
    model = nn.ParameterDict(dict(named("abc", torch.bfloat16)))
    before = trained(Lion8bit, model.named_parameters(), param_rounding="compensated")
    target = trained(PagedLion8bit, named("xa", torch.bfloat16), steps=1, param_rounding="compensated")
    own = states(target)
    target.load_state_dict(before.state_dict(), strict=False)
    assert_same(states(target), {"x": own["x"], "a": states(before)["a"]})
    wide = nn.Parameter(model["a"].detach().float())
    Lion8bit([("a", wide), *named("x")]).load_state_dict(before.state_dict(), strict=False)
    assert torch.equal(wide, lionbits.float32_parameters(model, before)["a"])
    assert not torch.equal(wide, model["a"].float())


def test_what_wrappers_keep_is_carried_along() -> None:
    """In the state of matched and of missing parameters, and under notes of their own."""
    before, target = trained(Lion8bit, named("ab")), trained(Lion8bit, named("bc"))
    for optimizer in (before, target):
        for param in optimizer.param_groups[0]["params"]:
            optimizer.state[param]["slow"] = param.detach() + 1
    saved = copy.deepcopy(before.state_dict())
    saved["state"]["note"] = {"text": "of a wrapper"}
    own = states(target)
    target.load_state_dict(saved, strict=False)
    assert target.state["note"] == {"text": "of a wrapper"}  # type: ignore[index]
    del target.state["note"]  # type: ignore[arg-type]
    assert_same(states(target), {"b": states(before)["b"], "c": own["c"]})


def test_neither_argument_is_changed() -> None:
    before = trained(Lion8bit, named("ab"))
    saved = before.state_dict()
    kept = copy.deepcopy(saved)
    target = trained(Lion8bit, named("bc"))
    target.load_state_dict(saved, strict=False)
    train(target, target.param_groups[0]["params"], range(2))
    assert_same(saved, kept)


def test_hooks_of_the_user_run_first() -> None:
    """They may rename."""
    before = trained(Lion8bit, [(f"module.{name}", param) for name, param in named("ab")])
    target = Lion8bit(named("bc"))

    def rename(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        groups = [
            {**group, "param_names": [name.removeprefix("module.") for name in group["param_names"]]}
            for group in state_dict["param_groups"]
        ]
        return {**state_dict, "param_groups": groups}

    with pytest.raises(ValueError, match=r"no parameter .* \['b', 'c'\], the state dict \['module.a', 'module.b'\]"):
        target.load_state_dict(before.state_dict(), strict=False)
    target.register_load_state_dict_pre_hook(rename)
    assert target.load_state_dict(before.state_dict(), strict=False) == (["b"], ["c"], ["a"])
    assert len(target._optimizer_load_state_dict_pre_hooks) == 1


def renamed(state_dict: dict[str, Any], names: list[str] | None) -> dict[str, Any]:
    (group,) = state_dict["param_groups"]
    group = {key: value for key, value in group.items() if key != "param_names"}
    return {**state_dict, "param_groups": [group if names is None else {**group, "param_names": names}]}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: renamed(s, None), ValueError, r"the state dict has no names\. Save it .* or add .* 'param_names'"),
        (lambda s: renamed(s, ["a", "a"]), ValueError, r"the state dict has \['a'\] twice"),
        (lambda s: renamed(s, ["p", "q"]), ValueError, "no parameter of the optimizer has the name"),
        (lambda s: renamed(s, ["a"]), ValueError, "2 parameters and param_names"),
        (lambda s: {**s, "state": {str(k): v for k, v in s["state"].items()}}, ValueError, "state for parameter '0'"),
        (lambda s: {**s, "state": {**s["state"], 1: {"step": 1}}}, ValueError, "state of parameter 1|parameter 1"),
        (lambda s: {"model": {}}, ValueError, "lacks 'state'"),
        (lambda s: interop.to_bitsandbytes(trained(Lion8bit, named("ab"))), ValueError, "interop.from_bitsandbytes"),
        (lambda s: [1], TypeError, "state_dict="),
        (lambda s: trained(lionbits.Lion4bit, named("ab")).state_dict(), ValueError, "group 0 .* Build the optimizer"),
        (
            lambda s: trained(Lion8bit, [("b", weights(shapes=[(64, 65)])[0])]).state_dict(),
            ValueError,
            r"parameter 0.*\(64, 64\)",
        ),
        (
            lambda s: trained(Lion8bit, named("b"), min_8bit_size=10_000).state_dict(),
            ValueError,
            "parameter 'c of the optimizer'",
        ),
    ],
)
def test_what_is_refused_changes_nothing(change: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    """All is looked at first, also the next step is as without the call."""
    saved = trained(Lion8bit, named("ab")).state_dict()
    target = trained(Lion8bit, named("bc"))
    twin = copy.deepcopy(target)
    before = snapshot(target)
    with pytest.raises(error, match=message):
        target.load_state_dict(change(saved), strict=False)
    assert_same(snapshot(target), before)
    for optimizer in (target, twin):
        train(optimizer, optimizer.param_groups[0]["params"], range(1))
    assert_same(snapshot(target), snapshot(twin))


def test_an_optimizer_without_names_is_refused() -> None:
    saved = trained(Lion8bit, named("ab")).state_dict()
    target = Lion8bit(weights())
    with pytest.raises(ValueError, match=r"the optimizer has no names\. Make it over model\.named_parameters\(\)"):
        target.load_state_dict(saved, strict=False)
    with pytest.raises(TypeError, match="strict=0 "):
        target.load_state_dict(saved, strict=0)  # type: ignore[arg-type]


def test_groups_that_differ_do_not_become_one() -> None:
    """Nor where their settings are tensors that cannot be compared."""
    a, b = named("ab")
    saved = trained(Lion8bit, [{"params": [a], "lr": 0.5}, {"params": [b]}]).state_dict()
    target = Lion8bit(named("abc"))
    with pytest.raises(ValueError, match="2 groups of the state dict, whose settings differ"):
        target.load_state_dict(saved, strict=False)
    for group in saved["param_groups"]:
        group["lr"] = torch.ones(3)
    with pytest.raises(ValueError, match="2 groups of the state dict, whose settings differ"):
        target.load_state_dict(saved, strict=False)
