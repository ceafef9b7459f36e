"""Which saved parameter is which of the optimizer's: by name, by position, or refused; never a wrong one in silence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lionbits
from lionbits import Lion, Lion8bit, interop

from .family import Variant, assert_same, snapshot, train, weights

State = dict[str, Any]

#: All alike, so that nothing but a name tells them apart.
SHAPES = [(64, 64)] * 4


def trained(variant: Callable[..., Lion], names: str, **more: Any) -> tuple[dict[str, nn.Parameter], Lion]:
    """Parameters that differ in nothing but values, by name."""
    params = dict(zip(names, weights(shapes=SHAPES), strict=True))
    optimizer = variant(list(params.items()), lr=0.01, percentile_clipping=50, **more)
    train(optimizer, list(params.values()), [1, 2])
    return params, optimizer


def momenta(params: dict[str, nn.Parameter], optimizer: Lion) -> dict[str, torch.Tensor]:
    return {name: optimizer.momentum(param) for name, param in params.items()}


def fresh(variant: Callable[..., Lion], names: str) -> tuple[dict[str, nn.Parameter], Lion]:
    params = dict(zip(names, weights(shapes=SHAPES), strict=True))
    return params, variant(list(params.items()))


@pytest.mark.parametrize("order", ["dcba", "bacd", "abcd"])
def test_another_order_of_names_is_matched(variant: Variant, order: str) -> None:
    """Momentum goes to the parameter of its name, and the optimizer's names stay in the order of its parameters."""
    params, optimizer = trained(variant, "abcd")
    others, target = fresh(variant, order)
    target.load_state_dict(optimizer.state_dict())
    assert target.param_groups[0]["param_names"] == list(order)
    assert target.param_groups[0]["lr"] == 0.01
    found = momenta(others, target)
    assert_same({name: found[name] for name in "abcd"}, momenta(params, optimizer))
    back_params, back = fresh(variant, "abcd")
    back.load_state_dict(target.state_dict())
    assert_same(momenta(back_params, back), momenta(params, optimizer))
    assert_same(back.state_dict(), optimizer.state_dict())


def test_other_groups_are_matched_by_name() -> None:
    """One group becomes two, and two that are alike become one."""
    params, optimizer = trained(Lion8bit, "abcd")
    others = dict(zip("dbca", weights(shapes=SHAPES), strict=True))
    named = list(others.items())
    target = Lion8bit([{"params": named[:1]}, {"params": named[1:], "lr": 0.5}])
    target.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in target.param_groups] == [0.01, 0.01]
    assert [group["param_names"] for group in target.param_groups] == [["d"], ["b", "c", "a"]]
    found = momenta(others, target)
    assert_same({name: found[name] for name in "abcd"}, momenta(params, optimizer))
    whole_params, whole = fresh(Lion8bit, "abcd")
    whole.load_state_dict(target.state_dict())
    assert_same(momenta(whole_params, whole), momenta(params, optimizer))


def test_groups_that_differ_do_not_become_one() -> None:
    params = list(zip("abcd", weights(shapes=SHAPES), strict=True))
    optimizer = Lion8bit([{"params": params[:2], "lr": 0.5}, {"params": params[2:]}])
    train(optimizer, [param for _, param in params], [1])
    _, target = fresh(Lion8bit, "abcd")
    before = snapshot(target)
    with pytest.raises(ValueError, match=r"2 groups of the state dict, whose settings differ"):
        target.load_state_dict(optimizer.state_dict())
    assert_same(snapshot(target), before)


def test_renamed_parameters_are_matched_by_position(variant: Variant) -> None:
    """As torch does it, where no name contradicts: a prefix, or one layer that has another name."""
    params, optimizer = trained(variant, "abcd")
    for names in ("wxyz", "abxd"):
        others, target = fresh(variant, names)
        target.load_state_dict(optimizer.state_dict())
        assert_same(list(momenta(others, target).values()), list(momenta(params, optimizer).values()))


@pytest.mark.parametrize("names", ["bxcd", "dabx", "xabc"])
def test_a_name_in_another_place_is_refused(variant: Variant, names: str) -> None:
    """Where the other names differ, neither names nor positions tell which is which."""
    _, optimizer = trained(variant, "abcd")
    _, target = fresh(variant, names)
    before = snapshot(target)
    with pytest.raises(ValueError, match=r"parameter '[abd]' is at another place.*'optimizer': \['x'\]"):
        target.load_state_dict(optimizer.state_dict())
    assert_same(snapshot(target), before)


def test_conversion_matches_by_name() -> None:
    params, optimizer = trained(Lion, "abcd")
    others, narrow = fresh(Lion8bit, "dbca")
    narrow.load_state_dict(lionbits.convert(optimizer.state_dict(), narrow))
    same_params, same = fresh(Lion8bit, "abcd")
    same.load_state_dict(lionbits.convert(optimizer.state_dict(), same))
    found = momenta(others, narrow)
    assert_same({name: found[name] for name in "abcd"}, momenta(same_params, same))
    assert params.keys() == same_params.keys()


#: (what becomes of a state dict whose parameters are 0..3, words of the message)
STRAYS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "texts": (str, "'0'"),
    "texts of floats": (lambda key: f"{key}.0", "'0.0'"),
    "shifted": (lambda key: key + 10, "10"),
    "fractions": (lambda key: key + 0.5, "0.5"),
    "names": (lambda key: f"layer{key}.weight", "'layer0.weight'"),
    "pairs": (lambda key: (0, key), r"\(0, 0\)"),
}


@pytest.mark.parametrize("name", STRAYS)
def test_state_of_no_parameter_is_not_dropped(variant: Variant, name: str) -> None:
    """A key that no group lists is refused where it, or what is there, says that it was a parameter's."""
    rename, word = STRAYS[name]
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, [1])
    given = copy.deepcopy(optimizer.state_dict())
    given["state"] = {rename(key): state for key, state in given["state"].items()}
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=rf"state for parameter {word}, which none of its groups lists"):
        optimizer.load_state_dict(given)
    assert_same(snapshot(optimizer), before)


def test_whole_floats_are_the_numbers_they_equal() -> None:
    params = weights()
    optimizer = Lion8bit(params)
    train(optimizer, params, [1])
    given = copy.deepcopy(optimizer.state_dict())
    given["state"] = {float(key): state for key, state in given["state"].items()}
    target = Lion8bit(weights())
    target.load_state_dict(given)
    assert_same(target.state_dict(), optimizer.state_dict())


def test_peers_state_of_no_parameter_is_not_dropped() -> None:
    """State dicts of other Lions likewise."""
    ours = Lion(weights())
    given = {
        "state": {str(key): {"exp_avg": torch.ones(param.shape)} for key, param in enumerate(weights())},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0, "params": [0, 1, 2, 3]}],
    }
    with pytest.raises(ValueError, match="state for parameter '0', which none of its groups lists"):
        interop.from_lion_pytorch(given, ours)
