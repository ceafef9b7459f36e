"""What torch.optim promises about parameter groups, for every variant, and lionbits' overrides by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion, PagedLion, QLion

from .family import Variant, assert_same, gradient, same, snapshot, train, weights

#: A setting per group, and another for the optimizer that it stands against.
PER_GROUP: dict[str, tuple[Any, Any]] = {
    "lr": (0.5, 0.25),
    "betas": ((0.5, 0.75), (0.9, 0.99)),
    "weight_decay": (500.0, 0.0),  # with lr 1e-4, enough to show in bfloat16
    "percentile_clipping": (5, 100),
    "block_size": (32, 64),
    "rounding": ("stochastic", "dithered"),
    "grad_clip": (0.01, 0.0),
    "maximize": (True, False),
    "nonfinite": ("propagate", "skip"),
    "param_rounding": ("dithered", "nearest"),
}

#: The same, for what QLion spells in its own way.
NOT_QLION: dict[str, tuple[Any, Any]] = {
    "cautious": ("gradient", None),
    "optim_bits": (4, 8),
    "min_8bit_size": (10**6, 4096),
    "state_format": ("e2m1", "e3m0"),
}

#: Settings that are about narrow state, and mean nothing at 32 bits.
NARROW = ("block_size", "rounding")


def _run(optimizer: Lion, groups: list[list[nn.Parameter]]) -> None:
    everything = [param for group in groups for param in group]
    for step in range(1, 4):
        for position, param in enumerate(everything):
            param.grad = gradient(param, position, step)
            param.grad.flatten()[0] = torch.inf
        optimizer.step()


@pytest.mark.parametrize("key", PER_GROUP)
def test_a_group_setting_overrides_the_optimizers(variant: Variant, key: str) -> None:
    """A group acts on its own value exactly as if the optimizer had been built with it, and the others do not."""
    _compare(variant, key, *PER_GROUP[key], matters=variant.bits < 32 or key not in NARROW)


@pytest.mark.parametrize("key", NOT_QLION)
@pytest.mark.parametrize("cls", [Lion, PagedLion])
def test_a_group_setting_of_lion_overrides_the_optimizers(cls: type[Lion], key: str) -> None:
    """The same for bits, formats, sizes and caution."""
    bits = {} if key == "optim_bits" else {"optim_bits": 4}
    _compare(Variant(cls.__name__, cls, 4, settings=bits), key, *NOT_QLION[key], matters=True)


def _compare(variant: Variant, key: str, here: Any, there: Any, *, matters: bool) -> None:
    """Mixed groups against one optimizer per setting over the same parameters, at the same positions."""
    results = []
    for constructor, first in (({key: there}, {key: here}), ({key: here}, {}), ({key: there}, {})):
        groups = [weights(torch.bfloat16, [(64, 65), (5,)]) for _ in range(2)]
        optimizer = variant([{"params": groups[0], **first}, {"params": groups[1]}], **constructor)
        _run(optimizer, groups)
        results.append([[(param.detach(), optimizer.state[param]) for param in group] for group in groups])
        if first:
            written = [group[key] for group in optimizer.param_groups]
            assert written == ([here, there] if matters or key != "block_size" else [None, None])
    mixed, all_here, all_there = results
    assert_same(mixed[0], all_here[0])
    assert_same(mixed[1], all_there[1])
    assert same(all_here, all_there) != matters


def test_a_group_may_have_bits_of_its_own_in_every_variant(variant: Variant) -> None:
    """Everything from ``lr`` on may be set per group: 32 bits for embeddings under Lion8bit, say."""
    wide = {"use_4bit": False} if issubclass(variant.cls, QLion) else {"optim_bits": 32}
    first, second = weights(shapes=[(64, 64), (64, 64)])
    optimizer = variant([{"params": first, **wide}, {"params": second}])
    train(optimizer, [first, second], [1])
    assert "exp_avg" in optimizer.state[first]
    assert ("exp_avg" in optimizer.state[second]) == (variant.bits == 32)
    again = variant([{"params": copy.deepcopy(first), **wide}, {"params": copy.deepcopy(second)}])
    again.load_state_dict(optimizer.state_dict())
    assert_same(again.state_dict(), optimizer.state_dict())


def test_a_group_with_other_bits_has_their_own_format() -> None:
    """Format and block size that were chosen for 8 bits are not those of a group with 4 or 32."""
    params = weights(shapes=[(64, 64)] * 4)
    groups = [{"params": params[0]}, {"params": params[1], "optim_bits": 4}, {"params": params[2], "optim_bits": 32}]
    groups.append({"params": params[3], "optim_bits": 4, "state_format": "e2m1", "block_size": 32})
    optimizer = Lion(groups, optim_bits=8, state_format="e4m3", block_size=64)
    found = [(group["state_format"], group["block_size"]) for group in optimizer.param_groups]
    assert found == [("e4m3", 64), ("e3m0", 128), ("float32", None), ("e2m1", 32)]


def test_a_group_added_midway_starts_at_its_first_step(variant: Variant) -> None:
    """add_param_group between steps: the newcomer counts its own steps, the others go on as if nothing had happened."""
    params, alone, (late,) = weights(), weights(), weights(shapes=[(64, 64)])
    optimizer, without = variant(params), variant(alone)
    train(optimizer, params, [1, 2])
    optimizer.add_param_group({"params": late, "lr": 0.5})
    start = late.detach().clone()
    train(optimizer, [*params, late], [3])
    train(without, alone, [1, 2, 3])
    assert [optimizer.state[param]["step"] for param in (*params, late)] == [3] * len(params) + [1]
    assert_same(late.detach(), start - 0.5 * gradient(late, len(params), 3).sign())
    assert_same(snapshot(optimizer)["state"][:-1], snapshot(without)["state"])
    assert_same(list(map(torch.detach, params)), list(map(torch.detach, alone)))


def test_params_may_come_as_torch_allows(variant: Variant) -> None:
    """A tensor, a generator, named pairs, groups of these: all the same training."""
    outcomes = []
    for shape in range(5):
        params = weights()
        forms: list[Any] = [
            params,
            (param for param in params),
            zip("abcd", params, strict=True),
            [{"params": iter(params)}],
            [{"params": param} for param in params],
        ]
        optimizer = variant(forms[shape])
        train(optimizer, params, [1, 2])
        outcomes.append([(param.detach(), optimizer.state[param]) for param in params])
    for other in outcomes[1:]:
        assert_same(other, outcomes[0])


def test_groups_of_one_optimizer_may_be_given_to_another(variant: Variant) -> None:
    """Groups as an optimizer shows them are groups that its class takes, and they mean the same."""
    params = weights()
    optimizer = variant([{"params": params[:2], "lr": 0.5}, {"params": params[2:], "betas": (0.5, 0.75)}], seed=3)
    again = variant(optimizer.param_groups, seed=3)
    assert_same(snapshot(again)["groups"], snapshot(optimizer)["groups"])
    again.add_param_group({**again.param_groups[1], "params": weights(shapes=[(3, 3)])})
    assert_same(snapshot(again)["groups"][2], snapshot(optimizer)["groups"][1])


def test_unknown_group_keys_are_kept(variant: Variant) -> None:
    """Schedulers and users keep notes of their own in groups; they survive a state dict and mean nothing."""
    params = weights()
    optimizer = variant([{"params": params, "initial_lr": 0.5, "note": "mine"}])
    train(optimizer, params, [1])
    target = variant(copy.deepcopy(params))
    target.load_state_dict(optimizer.state_dict())
    assert (target.param_groups[0]["initial_lr"], target.param_groups[0]["note"]) == (0.5, "mine")
    plain_params = weights()
    plain = variant(plain_params)
    train(plain, plain_params, [1])
    assert_same(list(map(torch.detach, params)), list(map(torch.detach, plain_params)))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(variant: Variant, set_to_none: bool) -> None:
    """zero_grad drops gradients or fills them with zeros, as in torch."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, [1])
    optimizer.zero_grad(set_to_none=set_to_none)
    assert all((param.grad is None) == set_to_none for param in params)
    assert all(param.grad is None or not param.grad.any() for param in params)
    optimizer.zero_grad()
    assert all(param.grad is None for param in params)


@pytest.mark.parametrize(
    "listed",
    [
        lambda p, q: [p, q, p],
        lambda p, q: [("a", p), ("b", p)],
        lambda p, q: [{"params": [p, p]}],
        lambda p, q: [{"params": [p]}, {"params": [q, p]}],
    ],
    ids=["a list", "two names", "a group", "two groups"],
)
def test_a_parameter_that_is_listed_twice_is_refused(variant: Variant, listed: Callable[..., Any]) -> None:
    """Torch warns, and then one backend may update it twice and another once."""
    with pytest.raises(ValueError, match=r"duplicate|more than one parameter group"):
        variant(listed(*weights(shapes=[(3, 3), (3, 3)])))


def test_a_group_with_a_duplicate_is_not_added(variant: Variant) -> None:
    first, late = weights(shapes=[(3, 3), (3, 3)])
    optimizer = variant([first])
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"duplicate parameters: params\[1\] is params\[0\]"):
        optimizer.add_param_group({"params": [late, late]})
    assert_same(snapshot(optimizer), before)


def test_a_parameter_that_is_listed_twice_later_is_refused_at_the_step(variant: Variant) -> None:
    """Lists of parameters can be edited after the optimizer was made, with a step before or without one."""
    params = weights(shapes=[(3, 3), (3, 3)])
    optimizer = variant(params)
    for step in range(2):
        optimizer.param_groups[0]["params"].append(params[0])
        before = snapshot(optimizer)
        with pytest.raises(ValueError, match=r"shape \(3, 3\) is a duplicate"):
            train(optimizer, params, [step])
        assert_same(snapshot(optimizer), before)
        optimizer.param_groups[0]["params"].pop()
        train(optimizer, params, [step])


def test_overrides_by_name_split_a_group(variant: Variant) -> None:
    """Every pattern that matches a name applies, later ones over earlier ones; other parameters keep the defaults."""
    names = ["embed.weight", "head.weight", "head.bias", "embed.bias"]
    params = weights()
    overrides = {"*embed*": {"lr": 0.5, "weight_decay": 0.125}, "*.bias": {"lr": 0.25}}
    optimizer = variant(zip(names, params, strict=True), overrides=overrides)
    found = {
        name: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for name in group["param_names"]
    }
    assert found == {
        "embed.weight": (0.5, 0.125),
        "head.weight": (1e-4, 0.0),
        "head.bias": (0.25, 0.0),
        "embed.bias": (0.25, 0.125),
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(params)
    assert overrides == {"*embed*": {"lr": 0.5, "weight_decay": 0.125}, "*.bias": {"lr": 0.25}}


def test_overrides_hold_for_groups_and_for_later_ones(variant: Variant) -> None:
    """An override wins over its group, leaves a group without a match whole, and holds for groups added later."""
    first, second, late = weights(shapes=[(64, 64), (5,), (64, 64)])
    optimizer = variant(
        [{"params": [("a.embed", first)], "lr": 0.5}, {"params": [("b.bias", second)], "lr": 0.125}],
        overrides={"*embed*": {"lr": 0.25}},
    )
    optimizer.add_param_group({"params": [("c.embed", late)], "lr": 0.75})
    optimizer.add_param_group({"params": [("d", weights()[3])]})
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates == {"a.embed": 0.25, "b.bias": 0.125, "c.embed": 0.25, "d": 1e-4}


def test_momentum_is_a_copy_and_for_own_parameters_only(variant: Variant) -> None:
    """``momentum(p)`` is float32 zeros at first, then decoded state that one may write to; strangers have none."""
    params = weights(torch.bfloat16)
    optimizer = variant(params)
    assert_same(optimizer.momentum(params[0]), torch.zeros(64, 64))
    train(optimizer, params, [1])
    before = snapshot(optimizer)
    for param in params:
        momentum = optimizer.momentum(param)
        assert (momentum.shape, momentum.dtype, momentum.is_contiguous()) == (param.shape, torch.float32, True)
        assert momentum.any()
        momentum.fill_(7.0)
    assert_same(snapshot(optimizer), before)
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        optimizer.momentum(torch.zeros(2, 3))
