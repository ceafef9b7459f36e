"""Gradients and parameters that are negated views: torch keeps their sign beside the bytes, and backends read bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lionbits import Lion, select

from .family import assert_same, gradient, weights
from .movers import moving

BACKENDS = ["reference", "triton", "cupy"]


def negated(tensor: Tensor) -> Tensor:
    """The same values, as the negative of what the bytes say."""
    return torch._neg_view(tensor.neg())


def run(backend: str, which: str, make: Any = Lion, **settings: Any) -> list[Any]:
    """Three steps, of which the last two have negated views; everything that they come to."""
    if reason := select.diagnose(backend, torch.device("cpu")):
        pytest.skip(reason)
    params = weights(shapes=[(64, 64), (33,)])
    if which == "parameters":
        params = [nn.Parameter(negated(param.detach())) for param in params]
    optimizer = make(params, lr=0.01, backend=backend, **settings)
    for step in range(3):
        for position, param in enumerate(params):
            grad = gradient(param, position, step)
            param.grad = negated(grad) if which == "gradients" and step else grad
        optimizer.step()
    return [[param.detach().resolve_neg() for param in params], optimizer.state_dict()["state"]]


@pytest.mark.parametrize("which", ["gradients", "parameters"])
@pytest.mark.parametrize("settings", [{"optim_bits": 32}, {"optim_bits": 8, "cautious": "mask"}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sign_counts(backend: str, settings: dict[str, Any], which: str) -> None:
    assert_same(run(backend, which, **settings), run(backend, "plain", **settings))


@pytest.mark.parametrize("which", ["gradients", "parameters"])
def test_the_sign_travels(which: str) -> None:
    """To where state is, in pages that are copied as bytes."""

    def make(params: list[nn.Parameter], **settings: Any) -> Lion:
        return moving(params, 1 << 12, None, paged_compute="host", **settings)

    assert_same(run("reference", which, make), run("reference", "plain", make))
