"""The optimizers under test, the small problem they are tried on, and what equality means here: every bit."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lionbits
from lionbits import Lion

#: Rows of whole blocks; rows that are odd and end in a short block; a vector too small to quantise; a scalar.
SHAPES = ((64, 64), (70, 61), (33,), ())


@dataclass(frozen=True)
class Variant:
    """A class of the family with the arguments that make it the variant to try; call it like the class."""

    name: str
    cls: type[Lion]
    bits: int
    paged: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, params: Any, **more: Any) -> Lion:
        return self.cls(params, **{**self.settings, **more})


FAMILY = (
    Variant("Lion", lionbits.Lion, 32),
    Variant("Lion32bit", lionbits.Lion32bit, 32),
    Variant("Lion8bit", lionbits.Lion8bit, 8),
    Variant("Lion4bit", lionbits.Lion4bit, 4),
    Variant("Lion-2bit", lionbits.Lion, 2, settings={"optim_bits": 2}),
    Variant("PagedLion", lionbits.PagedLion, 32, paged=True),
    Variant("PagedLion32bit", lionbits.PagedLion32bit, 32, paged=True),
    Variant("PagedLion8bit", lionbits.PagedLion8bit, 8, paged=True),
    Variant("PagedLion4bit", lionbits.PagedLion4bit, 4, paged=True),
    Variant("QLion", lionbits.QLion, 32),
    Variant("QLion-4bit", lionbits.QLion, 4, settings={"use_4bit": True}),
)


def weights(dtype: torch.dtype = torch.float32, shapes: Iterable[Sequence[int]] = SHAPES) -> list[nn.Parameter]:
    """Parameters with the same values at every call."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(tuple(shape), generator=generator).to(dtype)) for shape in shapes]


#: Whether this torch has gradients of another dtype than their parameter's (2.9 has not).
FREE_GRADIENTS = hasattr(Tensor, "grad_dtype")


def free_gradients(*params: nn.Parameter) -> None:
    """Let these have gradients of any dtype; where torch has none, skip the test."""
    if not FREE_GRADIENTS:
        pytest.skip("this torch has gradients of the parameter's dtype only")
    for param in params:
        param.grad_dtype = None


def gradient(param: Tensor, position: int, step: int) -> Tensor:
    """A gradient of the parameter's shape and dtype that depends on position and step alone."""
    generator = torch.Generator().manual_seed(1000 * step + position)
    return torch.randn(tuple(param.shape), generator=generator).to(param.dtype)


def train(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], steps: Iterable[int]) -> None:
    """Run these steps, each with its own gradients."""
    for step in steps:
        for position, param in enumerate(params):
            param.grad = gradient(param, position, step)
        optimizer.step()


def snapshot(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Copy everything that a refused call must leave alone: parameters, state, groups, defaults, hooks."""
    held = {
        "params": [param.detach() for group in optimizer.param_groups for param in group["params"]],
        "state": list(optimizer.state.values()),
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        "sizes": [len(group["params"]) for group in optimizer.param_groups],
        "defaults": optimizer.defaults,
        "hooks": {key: len(value) for key, value in vars(optimizer).items() if key.endswith("_hooks")},
    }
    return copy.deepcopy(held)


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Assert equality of nested containers: of tensors shape, dtype and bits; of all else type and value."""
    assert type(left) is type(right), f"{where}: {type(left)} and {type(right)}"
    if isinstance(left, Tensor):
        assert (left.shape, left.dtype) == (right.shape, right.dtype), where
        assert torch.equal(_bytes(left), _bytes(right)), f"{where}: {_difference(left, right)}"
    elif isinstance(left, Mapping):
        assert left.keys() == right.keys(), f"{where}: {sorted(map(str, left))} and {sorted(map(str, right))}"
        for key in left:
            assert_same(left[key], right[key], f"{where}[{key!r}]")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for position, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{where}[{position}]")
    else:
        both_nan = left != left and right != right  # noqa: PLR0124
        assert both_nan or left == right, f"{where}: {left!r} and {right!r}"


def same(left: Any, right: Any) -> bool:
    """Whether :func:`assert_same` finds nothing."""
    try:
        assert_same(left, right)
    except AssertionError:
        return False
    return True


def _difference(left: Tensor, right: Tensor) -> str:
    """How many elements of two tensors of one shape differ, and the first of them."""
    places = (left != right).nonzero()
    if not len(places):
        return "NaN or signs of zeros differ"
    first = tuple(places[0].tolist())
    return f"{len(places)} of {left.numel()} differ, first at {first}: {left[first]} and {right[first]}"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)
