"""How the classes are called and what they say about themselves."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import lionbits
from lionbits import Lion, QLion

from .family import Variant, weights

#: bitsandbytes' classic positional order: what a changed import line has to keeping.
CLASSIC = (
    *("params", "lr", "betas", "weight_decay", "optim_bits", "args"),
    *("min_8bit_size", "percentile_clipping", "block_wise", "is_paged"),
)

#: What each name decides, and so has no place for.
OMITTED: dict[str, set[str]] = {
    "Lion": set(),
    "Lion32bit": {"optim_bits"},
    "Lion8bit": {"optim_bits"},
    "Lion4bit": {"optim_bits"},
    "PagedLion": {"is_paged"},
    "PagedLion32bit": {"optim_bits", "is_paged"},
    "PagedLion8bit": {"optim_bits", "is_paged"},
    "PagedLion4bit": {"optim_bits", "is_paged"},
}

#: A value for every positional argument, none of them the default.
POSITIONAL = {
    "lr": 0.5,
    "betas": (0.5, 0.75),
    "weight_decay": 0.25,
    "optim_bits": 8,
    "args": None,
    "min_8bit_size": 2048,
    "percentile_clipping": 5,
    "block_wise": False,
    "is_paged": True,
}

#: Every keyword-only argument of Lion, with a value that is not the default.
KEYWORDS: dict[str, Any] = {
    "block_size": 64,
    "state_format": None,
    "rounding": "nearest",
    "cautious": "mask",
    "grad_clip": 0.5,
    "param_rounding": "stochastic",
    "master_bits": 24,
    "nonfinite": "propagate",
    "maximize": True,
    "seed": 3,
    "page_budget": None,
    "page_size": None,
    "page_dir": None,
    "paged_compute": None,
    "backend": "reference",
    "overrides": {"*": {"lr": 0.125}},
}


def positional(cls: type[Lion]) -> list[str]:
    """Names of the arguments that can be given by position, without ``self``."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(cls).parameters.values() if p.kind in kinds]


@pytest.mark.parametrize("name", OMITTED)
def test_positional_order_is_bitsandbytes_classic(name: str) -> None:
    """The positional arguments are bitsandbytes' ten, without those that the name decides, with its defaults."""
    cls = getattr(lionbits, name)
    assert positional(cls) == [key for key in CLASSIC if key not in OMITTED[name]]
    defaults = {key: p.default for key, p in inspect.signature(cls).parameters.items()}
    expected = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "optim_bits": 32, "args": None}
    expected |= {"min_8bit_size": 4096, "percentile_clipping": 100, "block_wise": True, "is_paged": False}
    assert all(defaults[key] == expected[key] for key in positional(cls)[1:])


@pytest.mark.parametrize("name", OMITTED)
def test_positional_call_lands_where_it_should(name: str) -> None:
    """A call with every argument by position sets each group key to its own value."""
    cls = getattr(lionbits, name)
    order = positional(cls)[1:]
    optimizer = cls(weights(), *(POSITIONAL[key] for key in order))
    group = optimizer.param_groups[0]
    for key in order:
        if key not in ("args", "is_paged"):
            assert group[key] == POSITIONAL[key], key
    assert optimizer.defaults["lr"] == 0.5


@pytest.mark.parametrize("name", OMITTED)
def test_what_the_name_decides_may_be_repeated_by_keyword(name: str) -> None:
    """optim_bits and is_paged are accepted by keyword by every class, as long as they say what the name says."""
    cls = getattr(lionbits, name)
    bits = int(found[1]) if (found := re.search(r"(\d+)bit", name)) else 8
    optimizer = cls(weights(), optim_bits=bits, is_paged=name.startswith("Paged"))
    assert optimizer.param_groups[0]["optim_bits"] == bits


@pytest.mark.parametrize("name", OMITTED)
@pytest.mark.parametrize("key", KEYWORDS)
def test_every_class_takes_every_keyword(name: str, key: str) -> None:
    """The keyword-only arguments of Lion are all, and all reach the groups of every class."""
    cls = getattr(lionbits, name)
    only = [p.name for p in inspect.signature(Lion).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert sorted(only) == sorted(KEYWORDS)
    optimizer = cls(zip("abcd", weights(), strict=True), **{key: KEYWORDS[key]})
    group = optimizer.param_groups[0]
    if key == "block_size":
        assert group[key] == (None if group["optim_bits"] == 32 else 64)
    elif key == "overrides":
        assert group["lr"] == 0.125
    elif key in group and KEYWORDS[key] is not None:
        assert group[key] == KEYWORDS[key]
    else:
        assert key in ("state_format", "page_budget", "page_size", "page_dir", "paged_compute", "backend")


@pytest.mark.parametrize("key", ["foreach", "differentiable", "fused", "capturable", "eps", "amsgrad", "optim_bit"])
def test_unknown_keywords_are_type_errors(variant: Variant, key: str) -> None:
    """What is not offered is refused as Python refuses any unknown keyword, by name."""
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{key}'"):
        variant(weights(), **{key: True})


@pytest.mark.parametrize("kind", ["mapping", "object"])
@pytest.mark.parametrize("name", ["Lion", "PagedLion"])
def test_args_overrides_the_arguments(kind: str, name: str) -> None:
    """``args``, a mapping or an object, replaces the four settings that it has, and no others."""
    wanted = {"optim_bits": 4, "min_8bit_size": 2048, "percentile_clipping": 50, "block_wise": False, "lr": 9.0}
    args: Any = wanted if kind == "mapping" else SimpleNamespace(**wanted)
    group = getattr(lionbits, name)(weights(), optim_bits=8, args=args).param_groups[0]
    assert {key: group[key] for key in wanted} == {**wanted, "lr": 1e-4}
    partial: Any = {"min_8bit_size": 64} if kind == "mapping" else SimpleNamespace(min_8bit_size=64)
    group = getattr(lionbits, name)(weights(), optim_bits=8, args=partial).param_groups[0]
    assert (group["optim_bits"], group["min_8bit_size"], group["block_wise"]) == (8, 64, True)


@pytest.mark.parametrize("cls", [Lion, QLion])
def test_docstring_and_signature_agree(cls: type[Lion]) -> None:
    """Every argument is documented under Args, in order, and nothing else is."""
    doc = inspect.cleandoc(cls.__doc__ or "")
    section = re.search(r"^Args:\n((?: .*\n|\n)*)", doc + "\n", re.MULTILINE)
    assert section is not None
    entries = re.findall(r"^ {4}(\*{0,2}\w[\w, *]*):", section[1], re.MULTILINE)
    documented = [name.strip(" *") for entry in entries for name in entry.split(",")]
    assert documented == list(inspect.signature(cls).parameters)


def test_variants_point_to_the_documentation() -> None:
    """Each variant has a docstring of its own that names Lion, where the arguments are explained."""
    for name in OMITTED:
        doc = getattr(lionbits, name).__doc__
        assert doc
        assert "Lion" in doc
        assert name == "Lion" or doc != Lion.__doc__


def test_every_public_name_is_there() -> None:
    """The names of the design, and no accidental ones, are what ``import *`` gives."""
    assert {*OMITTED, "QLion", "SymmetricQuantizer"} <= set(lionbits.__all__)
    assert all(hasattr(lionbits, name) for name in lionbits.__all__)


@pytest.mark.parametrize("name", OMITTED)
def test_repr_names_the_class_and_its_settings(name: str) -> None:
    """The repr is torch's: the class, then each group with its settings, and no tensors."""
    optimizer = getattr(lionbits, name)([{"params": weights()[:1]}, {"params": weights()[1:], "lr": 0.5}])
    lines = repr(optimizer).splitlines()
    assert lines[0] == f"{name} ("
    assert lines[-1] == ")"
    settings = {*CLASSIC, *KEYWORDS} - {
        "params",
        "args",
        "is_paged",
        "page_budget",
        "page_size",
        "page_dir",
        "paged_compute",
        "backend",
        "overrides",
    }
    for start in (i for i, line in enumerate(lines) if line.startswith("Parameter Group")):
        group = [line.split(":")[0].strip() for line in lines[start + 1 : start + 1 + len(settings)]]
        assert group == sorted(settings)
    assert "    lr: 0.5" in lines
    assert f"    optim_bits: {optimizer.param_groups[0]['optim_bits']}" in lines
    assert "tensor" not in repr(optimizer).lower()
    assert isinstance(optimizer, torch.optim.Optimizer)


def test_repr_says_what_a_group_comes_to() -> None:
    """Formats and how many parameters have them, bytes of state, where that is, which backend: known before a step."""
    big, small = nn.Parameter(torch.ones(64, 512)), nn.Parameter(torch.ones(64))
    frozen = nn.Parameter(torch.ones(9), requires_grad=False)
    optimizer = lionbits.PagedLion8bit([{"params": [big, small]}, {"params": [frozen]}], backend="reference")
    heads = [line for line in repr(optimizer).splitlines() if line.startswith("Parameter Group")]
    size = 64 * 512 + 64 * 2 * 4 + 64 * 4
    line = f"1 in e3m4 in blocks of 256, 1 in float32; {size:,} bytes, paged; backend reference"
    assert heads == [f"Parameter Group 0: {line}", "Parameter Group 1: nothing to train"]
    big.grad, small.grad = torch.ones_like(big), torch.ones_like(small)
    optimizer.step()
    held = [t for state in optimizer.state.values() for k, t in state.items() if k != "step"]
    assert sum(tensor.nbytes for tensor in held) == size
    small.data = small.data.double()
    assert "Parameter Group 0: a step would be refused: parameter dtype=torch.float64" in repr(optimizer)
    host = lionbits.PagedLion([big], page_dir=".", paged_compute="host", backend="reference")
    assert "bytes, paged in files, updated on the host; backend reference" in repr(host)
