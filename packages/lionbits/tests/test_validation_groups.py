"""Bad input to a running optimizer, by group, gradient or setting: refused, and the optimizer is as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion, Lion8bit, QLion

from .family import Variant, assert_same, free_gradients, gradient, snapshot, train, weights

NAN = float("nan")

#: A bad group: (what it is, exception, words of the message). The parameters are added where none are given.
GROUPS: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "lr negative": ({"lr": -1.0}, ValueError, ("lr=-1.0",)),
    "lr text": ({"lr": "x"}, TypeError, ("lr='x'",)),
    "lr of two": ({"lr": torch.ones(2)}, ValueError, ("lr must be 1-element", "(2,)")),
    "betas one": ({"betas": (0.9,)}, ValueError, ("betas=(0.9,)",)),
    "betas number": ({"betas": 0.9}, TypeError, ("betas=0.9",)),
    "weight_decay nan": ({"weight_decay": NAN}, ValueError, ("weight_decay=nan",)),
    "percentile_clipping": ({"percentile_clipping": 0}, ValueError, ("percentile_clipping=0",)),
    "block_wise": ({"block_wise": "no"}, TypeError, ("block_wise='no'",)),
    "block_size": ({"block_size": 33}, ValueError, ("block_size=33",)),
    "rounding": ({"rounding": "up"}, ValueError, ("rounding='up'",)),
    "grad_clip": ({"grad_clip": -1}, ValueError, ("grad_clip=-1",)),
    "param_rounding": ({"param_rounding": "up"}, ValueError, ("param_rounding='up'",)),
    "master_bits": ({"master_bits": 8}, ValueError, ("master_bits=8",)),
    "nonfinite": ({"nonfinite": "stop"}, ValueError, ("nonfinite='stop'",)),
    "maximize": ({"maximize": 1}, TypeError, ("maximize=1",)),
    "seed": ({"seed": 99}, ValueError, ("seed=99", "optimizer")),
    "backend": ({"backend": "reference"}, ValueError, ("backend='reference'", "optimizer")),
    "is_paged": ({"is_paged": True}, ValueError, ("is_paged=True", "optimizer")),
    "page_dir": ({"page_dir": "."}, ValueError, ("page_dir='.'", "optimizer")),
    "page_budget": ({"page_budget": 1}, ValueError, ("page_budget=1", "optimizer")),
    "page_size": ({"page_size": 1}, ValueError, ("page_size=1", "optimizer")),
    "paged_compute": ({"paged_compute": "host"}, ValueError, ("paged_compute='host'", "optimizer")),
    "args": ({"args": None}, ValueError, ("args=None", "optimizer")),
    "overrides": ({"overrides": {}}, ValueError, ("overrides={}", "optimizer")),
    "params number": ({"params": 5}, TypeError, ("params=5",)),
    "params none": ({"params": None}, TypeError, ("params=None",)),
    "params text": ({"params": ["weight"]}, TypeError, ("params[0]='weight'", "must be a tensor")),
    "params set": ({"params": {nn.Parameter(torch.ones(2))}}, TypeError, ("ordered",)),
    "params float64": ({"params": nn.Parameter(torch.ones(2, dtype=torch.float64))}, ValueError, ("torch.float64",)),
    "params complex": ({"params": nn.Parameter(torch.ones(2) * 1j)}, ValueError, ("torch.complex64",)),
    "params sparse": ({"params": nn.Parameter(torch.eye(2).to_sparse())}, TypeError, ("torch.sparse_coo",)),
    "params named": ({"params": [("a", torch.ones(2))]}, ValueError, ("names",)),
}

#: What Lion's groups may say and QLion's may not, with the message that they get from Lion.
LION_GROUPS: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "optim_bits": ({"optim_bits": 16}, ValueError, ("optim_bits=16",)),
    "optim_bits text": ({"optim_bits": "8"}, TypeError, ("optim_bits='8'",)),
    "min_8bit_size": ({"min_8bit_size": 0}, ValueError, ("min_8bit_size=0",)),
    "cautious": ({"cautious": "yes"}, ValueError, ("cautious='yes'",)),
    "state_format": ({"optim_bits": 8, "state_format": "e3m0"}, ValueError, ("state_format='e3m0'",)),
}

QLION_GROUPS: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "use_4bit": ({"use_4bit": 4}, TypeError, ("use_4bit=4",)),
    "cautious": ({"cautious": "gradient"}, TypeError, ("cautious='gradient'",)),
    "quant_threshold": ({"quant_threshold": -3}, ValueError, ("quant_threshold=-3",)),
    "momentum_first": ({"momentum_first": None}, TypeError, ("momentum_first=None",)),
    "optim_bits": (
        {"optim_bits": 8},
        ValueError,
        ("optim_bits=8", "use_4bit"),
    ),  # silently doing otherwise would be worse
    "min_8bit_size": ({"min_8bit_size": 64}, ValueError, ("min_8bit_size=64", "quant_threshold")),
}

#: What a group may not become under a running optimizer: (new settings, exception, words).
CHANGES: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "betas": ({"betas": (0.9, 1.0)}, ValueError, ("betas=(0.9, 1.0)",)),
    "rounding": ({"rounding": "up"}, ValueError, ("rounding='up'",)),
    "cautious": ({"cautious": "yes"}, ValueError, ("cautious='yes'",)),
    "min_8bit_size": ({"min_8bit_size": 10**6}, ValueError, ("exp_avg", "min_8bit_size")),
    "block_size": ({"block_size": 64}, ValueError, ("exp_avg_scale", "block_size")),
    "optim_bits": ({"optim_bits": 4, "state_format": None}, ValueError, ("exp_avg_codes", "optim_bits")),
}


def running(variant: Callable[..., Lion]) -> tuple[list[nn.Parameter], Lion]:
    """An optimizer with a step behind it."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, [1])
    return params, optimizer


def refused(optimizer: Lion, call: Callable[[], Any], kind: type[Exception], words: tuple[str, ...]) -> None:
    """Assert that the call raises exactly ``kind``, with these words, and that the optimizer is as before."""
    before = snapshot(optimizer)
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert caught.type is kind
    assert all(word in message for word in words), message
    assert len(message) < 600, f"{len(message)} characters: {message[:600]}"
    assert_same(snapshot(optimizer), before)


@pytest.mark.parametrize("key", GROUPS)
def test_bad_group(variant: Variant, key: str) -> None:
    """add_param_group refuses and adds nothing; the constructor refuses the same group."""
    group, kind, words = GROUPS[key]
    late = {"params": weights(shapes=[(64, 64)]), **group}
    _, optimizer = running(variant)
    refused(optimizer, lambda: optimizer.add_param_group(late), kind, words)
    with pytest.raises(kind) as caught:
        variant([{"params": weights()}, late])
    assert caught.type is kind


@pytest.mark.parametrize(("cls", "key"), [(Lion, key) for key in LION_GROUPS] + [(QLion, key) for key in QLION_GROUPS])
def test_bad_group_of_a_class(cls: type[Lion], key: str) -> None:
    """What Lion and QLion say differently they refuse differently."""
    group, kind, words = (LION_GROUPS if cls is Lion else QLION_GROUPS)[key]
    _, optimizer = running(cls)
    late = {"params": weights(shapes=[(64, 64)]), **group}
    refused(optimizer, lambda: optimizer.add_param_group(late), kind, words)


@pytest.mark.parametrize("group", [5, None, [torch.ones(2)], torch.ones(2), {}], ids=repr)
def test_a_group_that_is_none(variant: Variant, group: Any) -> None:
    """What is not a dict with parameters is no group."""
    _, optimizer = running(variant)
    refused(optimizer, lambda: optimizer.add_param_group(group), TypeError, ("param_group",))


def test_a_misspelt_params_key_is_said_briefly() -> None:
    """The message names the keys that are there, instead of printing every tensor of the model."""
    _, optimizer = running(Lion)
    group = {"parms": weights() * 10, "lr": 0.1}
    refused(optimizer, lambda: optimizer.add_param_group(group), TypeError, ("param_group", "'params'", "parms"))


def test_a_parameter_cannot_be_in_two_groups(variant: Variant) -> None:
    """torch's refusal, with torch's text; nothing is added."""
    params, optimizer = running(variant)
    words = ("some parameters appear in more than one parameter group",)
    refused(optimizer, lambda: optimizer.add_param_group({"params": params[0]}), ValueError, words)


def test_the_last_of_several_groups_being_bad_adds_none_of_an_overridden_one() -> None:
    """A group that overrides split in two is added whole or not at all."""
    named = list(zip("abcd", weights(), strict=True))
    optimizer = Lion(named, overrides={"[ad]*": {"lr": 0.5}})
    late = [("aa", nn.Parameter(torch.ones(3))), ("x", nn.Parameter(torch.ones(3, dtype=torch.float64)))]
    refused(optimizer, lambda: optimizer.add_param_group({"params": late}), ValueError, ("torch.float64",))


def test_sparse_gradients_are_refused(variant: Variant) -> None:
    """torch's RuntimeError, before any parameter moves, the dense ones included."""
    embedding = nn.Embedding(70, 64, sparse=True)
    dense = weights(shapes=[(64, 64)])[0]
    optimizer = variant([dense, embedding.weight])
    dense.grad = gradient(dense, 0, 1)
    embedding(torch.tensor([3])).sum().backward()
    refused(optimizer, optimizer.step, RuntimeError, ("sparse", "(70, 64)"))
    assert not optimizer.state


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.int32])
def test_gradients_of_a_dtype_that_is_not_served_are_refused(variant: Variant, dtype: torch.dtype) -> None:
    """A gradient of another dtype, where torch lets one through, is refused by name before any parameter moves."""
    params, optimizer = running(variant)
    free_gradients(params[1])
    params[1].grad = torch.ones_like(params[1], dtype=dtype)
    refused(optimizer, optimizer.step, ValueError, ("gradient", str(dtype)))


@pytest.mark.parametrize("key", CHANGES)
def test_a_setting_changed_under_way_is_refused_by_the_step(key: str) -> None:
    """A group that is edited into something impossible, or that its state does not fit, stops the next step whole."""
    changes, kind, words = CHANGES[key]
    params, optimizer = running(Lion8bit)
    late = weights(shapes=[(16, 512)])
    optimizer.add_param_group({"params": late})
    train(optimizer, [*params, *late], [2])
    optimizer.param_groups[1].update(changes)
    refused(optimizer, optimizer.step, kind, words)


def test_nonfinite_raise_says_how_many_and_updates_the_rest(variant: Variant) -> None:
    """nonfinite='raise' is FloatingPointError with the count; all finite elements have moved, the others have not."""
    params, alone = weights(), weights()
    optimizer, reference = variant(params, nonfinite="raise"), variant(alone)
    for some in (params, alone):
        for position, param in enumerate(some):
            param.grad = gradient(param, position, 1)
        assert some[0].grad is not None
        some[0].grad[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    with pytest.raises(FloatingPointError, match=r"\b3 element"):
        optimizer.step()
    reference.step()
    assert_same(snapshot(optimizer)["params"], snapshot(reference)["params"])
    assert_same(snapshot(optimizer)["state"], snapshot(reference)["state"])
    assert optimizer.skipped_elements() == 3
