"""Optimizers that others make: rebuilt from ``defaults``, or from a dotted name and arguments that were text."""

from __future__ import annotations

import ast
import copy
import importlib
import math
import pickle
from typing import Any

import pytest
import torch

import lionbits
from lionbits import Lion, QLion

from .family import Variant, assert_same, snapshot, train, weights

# ---- type(o)(params, **o.defaults) -----------------------------------------------------------------------------------

QLIONS: list[dict[str, Any]] = [
    {"use_4bit": True, "cautious": True, "quant_threshold": 0, "grad_clip": 0.5},
    {"use_4bit": True, "momentum_first": True, "betas": (0.5, 0.75)},
    {"use_4bit": True, "state_format": "e0m3", "block_wise": False, "rounding": "nearest"},
]
LIONS: list[dict[str, Any]] = [
    {"cautious": "mask", "grad_clip": 0.5, "weight_decay": 0.1, "maximize": True},
    {"percentile_clipping": 50, "rounding": "stochastic", "seed": 3, "betas": [0.5, 0.75]},
    {"block_wise": False, "min_8bit_size": 100, "nonfinite": "propagate"},
    {"lr": torch.tensor(0.001), "param_rounding": "dithered"},
]


@pytest.mark.filterwarnings("ignore:optim_bits=2 is for research")
@pytest.mark.parametrize("case", range(5))
@pytest.mark.parametrize("way", ["new", "copied", "pickled", "loaded"])
def test_rebuilt_from_its_defaults(variant: Variant, case: int, way: str) -> None:
    """Every class of the family: the same settings, groups and steps; and what is rebuilt can be rebuilt."""
    cases = [{}, *(QLIONS if issubclass(variant.cls, QLion) else LIONS)]
    settings = cases[case % len(cases)]
    first, second = weights(torch.bfloat16), weights(torch.bfloat16)
    optimizer = variant(first, **settings)
    made = optimizer
    if way == "copied":
        made = copy.deepcopy(optimizer)
    elif way == "pickled":
        made = pickle.loads(pickle.dumps(optimizer))
    elif way == "loaded":
        made = variant(weights(torch.bfloat16), **settings)
        made.load_state_dict(optimizer.state_dict())
    rebuilt = type(made)(second, **made.defaults)
    again = type(rebuilt)(weights(torch.bfloat16), **rebuilt.defaults)
    assert_same(again.defaults, optimizer.defaults)
    assert_same(snapshot(rebuilt)["groups"], snapshot(optimizer)["groups"])
    assert repr(type(rebuilt)) == repr(variant.cls)
    rebuilt.add_param_group({"params": weights(torch.bfloat16)})
    train(optimizer, first, range(3))
    train(rebuilt, second, range(3))
    assert_same([param.detach() for param in first], [param.detach() for param in second])


def test_qlions_defaults_are_qlions() -> None:
    """Its arguments under its names; Lion's two beside them are accepted where they say the same."""
    defaults = QLion(weights(), use_4bit=True, cautious=True).defaults
    assert (defaults["use_4bit"], defaults["cautious"], defaults["quant_threshold"]) == (True, True, 1024)
    with pytest.raises(TypeError, match=r"optim_bits=4 .* Set use_4bit"):
        QLion(weights(), **{**defaults, "use_4bit": False})
    with pytest.raises(TypeError, match=r"min_8bit_size=1025 .* Set quant_threshold"):
        QLion(weights(), **{**defaults, "quant_threshold": 7})


# ---- a dotted name and text ------------------------------------------------------------------------------------------


def handed_over(name: str, arguments: list[str]) -> Lion:
    """As sd-scripts does it: the class by its dotted name, ``key=value`` texts read by ``ast.literal_eval``."""
    module, cls = name.rsplit(".", 1)
    pairs = [argument.split("=", 1) for argument in arguments]
    found: Lion = getattr(importlib.import_module(module), cls)(weights(), **{k: ast.literal_eval(v) for k, v in pairs})
    return found


NAMES = [name for name in lionbits.__all__ if isinstance(getattr(lionbits, name), type) and "Lion" in name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["betas=(0.9, 0.99)", "weight_decay=0"], {"betas": (0.9, 0.99), "weight_decay": 0}),
        (["betas=[0.95, 0.98]", "lr=1"], {"betas": [0.95, 0.98], "lr": 1}),
        (["betas=0.95,0.98", "weight_decay=1e-2", "lr=1e-4"], {"betas": (0.95, 0.98), "weight_decay": 0.01}),
        (["betas=0,0", "grad_clip=1"], {"betas": (0, 0), "grad_clip": 1}),
        (["maximize=True", "seed=7", "rounding='nearest'"], {"maximize": True, "seed": 7, "rounding": "nearest"}),
        (["block_size=None", "block_wise=False"], {"block_size": None, "block_wise": False}),
    ],
)
def test_arguments_that_were_text(name: str, arguments: list[str], expected: dict[str, Any]) -> None:
    """Numbers are ints where floats are expected, and betas come as lists or tuples."""
    optimizer = handed_over(f"lionbits.{name}", arguments)
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in expected} == expected
    train(optimizer, group["params"], range(2))
    assert all(torch.isfinite(param).all() for param in group["params"])


def test_ints_mean_what_floats_do() -> None:
    """Every bit."""
    results = []
    for settings in ({"lr": 1, "weight_decay": 0, "grad_clip": 1}, {"lr": 1.0, "weight_decay": 0.0, "grad_clip": 1.0}):
        params = weights()
        optimizer = lionbits.Lion8bit(params, betas=[0, 0.5] if settings["lr"] == 1 else (0.0, 0.5), **settings)  # type: ignore[arg-type]
        train(optimizer, params, range(3))
        results.append([params, [optimizer.momentum(param) for param in params]])
    assert_same(*results)


@pytest.mark.parametrize(
    ("argument", "value", "says"),
    [
        ("lr", "1e-4", "Its type is str: YAML reads a number as text if it lacks the point"),
        ("lr", "1E-4", "write 1.0e-4."),
        ("lr", "1.5e4", "write 1.5e+4."),
        ("lr", "-1.e3", "write -1.0e+3."),
        ("lr", ".5e-3", "write 0.5e-3."),
        ("lr", "0.001", "Its type is str: write 0.001 without quotes."),
        ("lr", "fast", "Its type is str."),
        ("lr", "e5", "Its type is str."),
        ("lr", None, "Its type is NoneType."),
        ("lr", [0.1], "Its type is list."),
        ("weight_decay", "1e-2", "write 1.0e-2."),
        ("weight_decay", "0", "write 0 without quotes."),
        ("grad_clip", "1", "write 1 without quotes."),
        ("betas", "(0.9, 0.99)", "Its type is str: write (0.9, 0.99) without quotes."),
        ("betas", "0.9,0.99", "write (0.9, 0.99) without quotes."),
        ("betas", 0.9, "Its type is float."),
        ("betas", ["9e-1", 0.99], "of which betas[0]='9e-1' is not accepted"),
        ("betas", (0.9, "0.99"), "write 0.99 without quotes."),
        ("min_8bit_size", 4096.0, "Its type is float: write 4096 if a number is meant."),
        ("min_8bit_size", "4096", "write 4096 without quotes."),
        ("percentile_clipping", "5", "write 5 without quotes."),
        ("optim_bits", "8", "write 8 without quotes."),
        ("optim_bits", 8.0, "write 8 if a number is meant."),
        ("block_size", "64", "write 64 without quotes."),
        ("state_format", 34, "Its type is int."),
        ("backend", 5, "Its type is int."),
        ("block_wise", "True", "Its type is str: write True without quotes."),
        ("block_wise", "false", "write False without quotes."),
        ("maximize", "yes", "Its type is str."),
        ("is_paged", "true", "write True without quotes."),
        ("is_paged", 1, "Its type is int."),
        ("seed", "0", "write 0 without quotes."),
        ("seed", math.pi, "Its type is float."),
        ("master_bits", "24", "write 24 without quotes."),
        ("cautious", True, "Its type is bool."),
        ("rounding", None, "Its type is NoneType."),
        ("overrides", "{'*': {'lr': 1.0}}", "write {'*': {'lr': 1.0}} without quotes."),
        ("args", "{'optim_bits': 8}", "Its type is str: write {'optim_bits': 8} without quotes."),
        ("args", ["optim_bits=8"], "Its type is list."),
        ("args", 8, "Its type is int."),
        ("grad_clip", -1j, "Its type is complex."),
        ("seed", 1e300, "Its type is float."),
        ("lr", "(" * 150, "Its type is str."),
        ("lr", "(" * 5000, "Its type is str."),
    ],
)  # fmt: skip
def test_a_wrong_type_is_named_with_the_way_out(argument: str, value: Any, says: str) -> None:
    """In groups, too, but for what is the optimizer's."""
    with pytest.raises(TypeError) as raised:
        Lion(weights(), **{argument: value})
    assert str(raised.value).startswith(f"{argument}=")
    assert says in str(raised.value)
    assert len(str(raised.value)) < 700
    if argument in ("is_paged", "overrides", "args", "seed", "backend"):
        return
    optimizer = Lion(weights())
    before = snapshot(optimizer)
    with pytest.raises(TypeError) as raised:
        optimizer.add_param_group({"params": weights(), argument: value})
    assert says in str(raised.value)
    assert_same(snapshot(optimizer), before)
