"""Bad input to constructors: the exact exception type, and a message that names the argument and its value."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import lionbits
from lionbits import Lion, QLion, SymmetricQuantizer
from lionbits.select import BackendUnavailable

from .family import Variant, weights

NAN, INF = float("nan"), float("inf")

#: (argument, value, exception, what else has to be there for this to be the fault) of Lion.
ARGUMENTS: list[tuple[str, Any, type[Exception], dict[str, Any]]] = [
    *(("lr", value, ValueError, {}) for value in (-1e-3, NAN, INF, -INF, 1e39)),
    *(("lr", value, TypeError, {}) for value in ("0.1", None, True, 1j, [0.1])),
    *(("betas", value, ValueError, {}) for value in ((0.9,), (0.9, 0.99, 0.999), (1.0, 0.99), (0.9, -0.1), (0.9, NAN))),
    *(("betas", value, TypeError, {}) for value in (0.9, "ab", None, (0.9, "0.99"), (0.9, True), {0.9, 0.99})),
    *(("weight_decay", value, ValueError, {}) for value in (-1, NAN, INF, 1e39)),
    *(("weight_decay", value, TypeError, {}) for value in ("0", None, False)),
    *(("optim_bits", value, ValueError, {}) for value in (16, 0, -8, 1)),
    *(("optim_bits", value, TypeError, {}) for value in ("8", None, True, 8.0, 32.0, [8])),
    *(("min_8bit_size", value, ValueError, {}) for value in (0, -1)),
    *(("min_8bit_size", value, TypeError, {}) for value in (4096.0, "4096", None, True)),
    *(("percentile_clipping", value, ValueError, {}) for value in (0, 101, -5)),
    # False stands at this position in a call that was written for bitsandbytes 0.50, which has is_paged there.
    *(("percentile_clipping", value, TypeError, {}) for value in (5.0, "5", None, False)),
    *(("block_wise", value, TypeError, {}) for value in (1, "yes", None)),
    *(("is_paged", value, TypeError, {}) for value in (1, 0, None, "no")),
    *(("block_size", value, ValueError, {"optim_bits": 8}) for value in (0, -64, 16, 100, 8192)),
    *(("block_size", value, TypeError, {"optim_bits": 8}) for value in (64.0, "64", True)),
    ("block_size", 100, ValueError, {"optim_bits": 32}),
    ("block_size", 64, ValueError, {"optim_bits": 8, "block_wise": False}),
    *(("state_format", value, ValueError, {"optim_bits": 8}) for value in ("e3m3", "e5m2", "E3M4", "float32", "")),
    *(("state_format", "e3m4", ValueError, {"optim_bits": bits}) for bits in (32, 4, 2)),
    *(("state_format", value, TypeError, {"optim_bits": 8}) for value in (34, b"e3m4", ("e3", "m4"))),
    *(("rounding", value, ValueError, {}) for value in ("random", "Nearest", "")),
    *(("rounding", value, TypeError, {}) for value in (None, 0, ["nearest"])),
    *(("cautious", value, ValueError, {}) for value in ("Mask", "qlion", "")),
    *(("cautious", value, TypeError, {}) for value in (True, False, 1)),
    *(("grad_clip", value, ValueError, {}) for value in (-1.0, NAN, INF)),
    *(("grad_clip", value, TypeError, {}) for value in ("1", None, True)),
    ("param_rounding", "up", ValueError, {}),
    ("param_rounding", None, TypeError, {}),
    ("master_bits", 16, ValueError, {}),
    *(("master_bits", value, TypeError, {}) for value in ("32", None, 24.0)),
    ("nonfinite", "ignore", ValueError, {}),
    *(("nonfinite", value, TypeError, {}) for value in (None, False)),
    *(("maximize", value, TypeError, {}) for value in (1, None, "yes")),
    *(("seed", value, ValueError, {}) for value in (-1, 2**64)),
    *(("seed", value, TypeError, {}) for value in (1.5, None, "0", True)),
    ("page_budget", -1, ValueError, {"is_paged": True}),
    *(("page_budget", value, TypeError, {"is_paged": True}) for value in (1e9, "1GB", True)),
    ("page_budget", 10**9, ValueError, {}),
    ("page_size", 0, ValueError, {"is_paged": True}),
    ("page_size", "16M", TypeError, {"is_paged": True}),
    ("page_size", 1 << 20, ValueError, {}),
    ("page_dir", "/no/such/folder", ValueError, {"is_paged": True}),
    *(("page_dir", value, TypeError, {"is_paged": True}) for value in (5, True)),
    ("page_dir", ".", ValueError, {}),
    ("paged_compute", "cpu", ValueError, {"is_paged": True}),
    ("paged_compute", 1, TypeError, {"is_paged": True}),
    ("paged_compute", "host", ValueError, {}),
    ("page_budget", 1 << 20, ValueError, {"is_paged": True, "paged_compute": "host"}),
    ("backend", "no_such_backend", BackendUnavailable, {}),
    *(("backend", value, TypeError, {}) for value in (5, True, Lion)),
    *(("overrides", value, TypeError, {}) for value in (5, ["*"], "*", {"*": 32}, {"*": None}, {3: {"lr": 1.0}})),
]  # fmt: skip

#: What only a name can contradict: (class, arguments, exception, words of the message).
NAMES: list[tuple[str, dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ("Lion8bit", {"optim_bits": 4}, ValueError, ("optim_bits=4", "Lion8bit")),
    ("Lion32bit", {"optim_bits": 8}, ValueError, ("optim_bits=8", "Lion32bit")),
    ("Lion4bit", {"optim_bits": 32}, ValueError, ("optim_bits=32", "Lion4bit")),
    ("Lion32bit", {"optim_bits": "32"}, TypeError, ("optim_bits='32'",)),
    ("PagedLion", {"is_paged": False}, ValueError, ("is_paged=False", "PagedLion")),
    ("PagedLion", {"is_paged": 0}, TypeError, ("is_paged=0",)),
    ("PagedLion8bit", {"is_paged": False}, ValueError, ("is_paged=False", "PagedLion8bit")),
    ("PagedLion4bit", {"optim_bits": 8}, ValueError, ("optim_bits=8", "PagedLion4bit")),
    ("PagedLion32bit", {"optim_bits": 4, "is_paged": True}, ValueError, ("optim_bits=4", "PagedLion32bit")),
    ("Lion8bit", {"args": {"optim_bits": 4}}, ValueError, ("optim_bits=4", "Lion8bit")),
    ("Lion", {"args": {"optim_bits": 7}}, ValueError, ("optim_bits=7",)),
    ("Lion", {"args": SimpleNamespace(percentile_clipping="5")}, TypeError, ("percentile_clipping='5'",)),
    ("PagedLion", {"args": SimpleNamespace(block_wise=0)}, TypeError, ("block_wise=0",)),
    ("QLion", {"use_4bit": 1}, TypeError, ("use_4bit=1",)),
    ("QLion", {"use_4bit": "yes"}, TypeError, ("use_4bit='yes'",)),
    ("QLion", {"cautious": "mask"}, TypeError, ("cautious='mask'",)),
    ("QLion", {"cautious": None}, TypeError, ("cautious=None",)),
    ("QLion", {"quant_threshold": -1}, ValueError, ("quant_threshold=-1",)),
    ("QLion", {"quant_threshold": 1024.0}, TypeError, ("quant_threshold=1024.0",)),
    ("QLion", {"quant_threshold": None}, TypeError, ("quant_threshold=None",)),
    ("QLion", {"grad_clip": -1.0}, ValueError, ("grad_clip=-1.0",)),
    ("QLion", {"momentum_first": 1}, TypeError, ("momentum_first=1",)),
    ("QLion", {"betas": (0.9, 1.0), "momentum_first": True}, ValueError, ("betas=(0.9, 1.0)",)),
    ("QLion", {"optim_bits": 8}, TypeError, ("optim_bits=8", "Set use_4bit")),
    ("QLion", {"min_8bit_size": 8}, TypeError, ("min_8bit_size=8", "Set quant_threshold")),
    ("QLion", {"args": {"optim_bits": 8}}, TypeError, ("args={'optim_bits': 8}", "Set use_4bit")),
    ("Lion", {"weigth_decay": 0.1}, TypeError, ("Lion got", "'weigth_decay', 0.1.", "Did you mean 'weight_decay'?")),
    ("PagedLion8bit", {"blocksize": 64}, TypeError, ("PagedLion8bit got", "Did you mean 'block_size'?")),
    ("QLion", {"use_4bits": True}, TypeError, ("QLion got", "Did you mean 'use_4bit'?")),
    ("Lion8bit", {"bits": 4}, TypeError, ("'bits', 4.", "There are params, lr, betas", "optim_bits", "overrides.")),
    ("Lion", {"optim_bits": 4, "state_format": "e3m4"}, ValueError, ("'e0m3'", "'e3m4' is for optim_bits=8, not 4")),
]


def used(params: Iterable[nn.Parameter]) -> Iterator[nn.Parameter]:
    """A generator that has nothing left."""
    rest = iter(params)
    list(rest)
    return rest


#: (what is called, exception, words of the message)
PARAMETERS: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "none": (lambda: Lion(None), TypeError, ("iterable of Tensors or dicts, but got None",)),
    "a tensor": (lambda: Lion(weights()[0]), TypeError, ("iterable of Tensors or dicts", "<Parameter", "in a list")),
    "empty": (lambda: Lion([]), ValueError, ("empty parameter list",)),
    "not a tensor": (lambda: Lion([5]), TypeError, ("params[0]=5", "must be a tensor")),
    "a model": (lambda: Lion(nn.Linear(2, 2)), TypeError, ("Linear(in_features=2", "Pass model.parameters()")),
    "a layer in a list": (lambda: Lion([nn.Linear(2, 2)]), TypeError, ("params[0]=Linear", "Pass its parameters()")),
    "a method": (lambda: Lion(nn.Linear(2, 2).parameters), TypeError, ("bound method", "Call it")),
    "a state dict": (lambda: Lion(nn.Linear(2, 2).state_dict()), TypeError, ("<OrderedDict>", "values()")),
    "a lone group": (lambda: Lion({"params": weights()}), TypeError, ("<dict>", "Pass it in a list")),
    "a text": (lambda: Lion("weight"), TypeError, ("'weight'", "iterable of Tensors")),
    "a generator that was used": (lambda: Lion(used(weights())), ValueError, ("empty parameter list", "call it anew")),
    "a name behind": (lambda: Lion([(weights()[0], "w")]), TypeError, ("params[0]=<tuple>", "(name, tensor)")),
    "an unordered set": (lambda: Lion(set(weights())), TypeError, ("<set>", "use a list instead")),
    "a set": (lambda: Lion([{"params": set(weights())}]), TypeError, ("ordered",)),
    "not a leaf": (lambda: Lion([weights()[0] * 2]), ValueError, ("params[0]", "non-leaf", "the parameter itself")),
    "half named": (lambda: Lion([("a", weights()[0]), weights()[1]]), ValueError, ("names",)),
    "float64": (lambda: Lion(weights(torch.float64)), ValueError, ("torch.float64", "torch.float32")),
    "complex": (lambda: Lion(weights(torch.complex64)), ValueError, ("torch.complex64",)),
    "sparse": (lambda: Lion([nn.Parameter(torch.eye(3).to_sparse())]), TypeError, ("torch.sparse_coo", "(3, 3)")),
    "float16 dithered": (
        lambda: Lion(weights(torch.float16), param_rounding="dithered"),
        ValueError,
        ("param_rounding='dithered'", "torch.float16"),
    ),
    "float16 compensated": (
        lambda: Lion(weights(torch.float16), param_rounding="compensated"),
        ValueError,
        ("param_rounding='compensated'", "torch.float16"),
    ),
    "tensor lr of two": (lambda: Lion(weights(), lr=torch.ones(2)), ValueError, ("lr must be 1-element", "(2,)")),
    "tensor lr below zero": (lambda: Lion(weights(), lr=torch.tensor(-0.5)), ValueError, ("lr=-0.5",)),
    "tensor lr nan": (lambda: Lion(weights(), lr=torch.tensor(NAN)), ValueError, ("lr=nan",)),
    "tensor lr complex": (lambda: Lion(weights(), lr=torch.tensor(1j)), TypeError, ("lr=1j",)),
    "a module without the protocol": (
        lambda: Lion(weights(), backend=types),
        TypeError,
        ("backend='types'", "supports", "encode"),
    ),
    "overrides without names": (
        lambda: Lion(weights(), overrides={"*": {"lr": 1.0}}),
        ValueError,
        ("overrides", "named_parameters"),
    ),
}  # fmt: skip

#: (settings of an override that matches, exception, words of the message)
OVERRIDES: list[tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ({"lr": -1.0}, ValueError, ("lr=-1.0",)),
    ({"optim_bits": "8"}, TypeError, ("optim_bits='8'",)),
    ({"optim_bit": 32}, ValueError, ("optim_bit",)),  # a misspelt setting must not pass for a harmless note
    ({"backend": "reference"}, ValueError, ("backend='reference'",)),
    ({"seed": 3}, ValueError, ("seed=3",)),
    ({"params": []}, ValueError, ("params",)),
]

#: (what is called, exception, words of the message) of the quantizer
QUANTIZER: list[tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = [
    (lambda: SymmetricQuantizer(bits=1), ValueError, ("bits=1",)),
    (lambda: SymmetricQuantizer(bits=9), ValueError, ("bits=9",)),
    (lambda: SymmetricQuantizer(bits=4.0), TypeError, ("bits=4.0",)),  # type: ignore[arg-type]
    (lambda: SymmetricQuantizer(min_scale=-1.0), ValueError, ("min_scale=-1.0",)),
    (lambda: SymmetricQuantizer(min_scale=0.0), ValueError, ("min_scale=0.0",)),
    (lambda: SymmetricQuantizer(min_scale=NAN), ValueError, ("min_scale=nan",)),
    (lambda: SymmetricQuantizer(min_scale="0"), TypeError, ("min_scale='0'",)),  # type: ignore[arg-type]
    (lambda: SymmetricQuantizer().quantize([1.0]), TypeError, ("[1.0]",)),  # type: ignore[arg-type]
    (lambda: SymmetricQuantizer().quantize(torch.tensor([1.0, NAN])), ValueError, ("finite", "(2,)")),
    (lambda: SymmetricQuantizer().quantize(torch.tensor([INF])), ValueError, ("finite", "(1,)")),
]


def refused(call: Callable[[], Any], kind: type[Exception], words: tuple[str, ...]) -> None:
    """Assert that the call raises exactly ``kind``, in one readable line with these words in it."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert caught.type is kind
    assert all(word in message for word in words), message
    assert len(message) < 600, f"{len(message)} characters: {message[:600]}"


@pytest.mark.parametrize(("name", "value", "kind", "beside"), ARGUMENTS)
def test_bad_argument(name: str, value: Any, kind: type[Exception], beside: dict[str, Any]) -> None:
    """Every argument of Lion refuses wrong types and wrong values, as ``name=value``."""
    named = list(zip("abcd", weights(), strict=True))
    refused(lambda: Lion(named, **{name: value}, **beside), kind, (f"{name}={value!r}",))


@pytest.mark.parametrize(("cls", "arguments", "kind", "words"), NAMES)
def test_bad_argument_of_a_variant(
    cls: str, arguments: dict[str, Any], kind: type[Exception], words: tuple[str, ...]
) -> None:
    """No variant takes what contradicts its name, and QLion has rules of its own."""
    refused(lambda: getattr(lionbits, cls)(weights(), **arguments), kind, words)


@pytest.mark.parametrize("key", PARAMETERS)
def test_bad_parameters(key: str) -> None:
    """Parameters that cannot be optimized are refused when the optimizer is built, not when it steps."""
    refused(*PARAMETERS[key])


@pytest.mark.parametrize(("settings", "kind", "words"), OVERRIDES)
def test_bad_override(settings: dict[str, Any], kind: type[Exception], words: tuple[str, ...]) -> None:
    """An override is checked like a parameter group, and may not say what is not a setting."""
    refused(lambda: Lion(zip("abcd", weights(), strict=True), overrides={"a": settings}), kind, words)


def test_override_that_matches_nothing() -> None:
    """A pattern without a parameter is a misspelling, and the message says what names there are."""
    names = ["embed.weight", "head.weight", "head.bias", "scale"]
    named = list(zip(names, weights(), strict=True))
    overrides = {"*embedding*": {"optim_bits": 32}}
    refused(lambda: Lion(named, overrides=overrides), ValueError, ("overrides", "*embedding*", "embed.weight"))


@pytest.mark.parametrize(("call", "kind", "words"), QUANTIZER)
def test_bad_use_of_the_quantizer(call: Callable[[], Any], kind: type[Exception], words: tuple[str, ...]) -> None:
    """SymmetricQuantizer refuses like the optimizers do."""
    refused(call, kind, words)


@pytest.mark.parametrize(
    ("name", "value"), [("lr", -1.0), ("betas", (0.9, 1.5)), ("weight_decay", NAN), ("grad_clip", -2)]
)
def test_every_class_checks(variant: Variant, name: str, value: Any) -> None:
    """The checks are not Lion's alone."""
    refused(lambda: variant(weights(), **{name: value}), ValueError, (f"{name}={value!r}",))


def test_qlion_and_lion_say_the_same() -> None:
    """QLion's own checks read like all others."""
    messages = []
    for build in (lambda: Lion(weights(), maximize=1), lambda: QLion(weights(), use_4bit=1)):
        with pytest.raises(TypeError) as caught:
            build()
        messages.append(str(caught.value).split("=", 1)[1])
    assert messages[0] == messages[1]
