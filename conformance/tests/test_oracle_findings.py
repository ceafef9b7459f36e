"""Faults that the oracle found in the optimizer or the reference when it first checked them; each is mended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import lionbits
from lionbits_conformance.oracle.differential import StepInput, replay

BACKEND = {"backend": "reference"}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float64], ids=str)
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """torch's default type, as people set it while they build a model."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def test_a_norm_that_is_not_a_number_does_not_switch_off_grad_clip() -> None:
    """Of several limits the smaller counts. A percentile that is NaN is no limit; grad_clip still is one."""
    kwargs = {"lr": 0.1, "percentile_clipping": 50, "grad_clip": 1.0, "nonfinite": "propagate", **BACKEND}
    bad, large = torch.tensor([torch.nan, 1.0, 2.0, 3.0]), torch.full((4,), 100.0)
    assert replay(lionbits.Lion, kwargs, [torch.ones(4)], [StepInput([bad]), StepInput([large])]) is None


def test_a_clip_limit_beyond_binary32_limits_nothing() -> None:
    """grad_clip is a finite number, so accepted; rounded to binary32 once it is infinite, which no norm exceeds."""
    kwargs = {"lr": 0.1, "grad_clip": 1e39, **BACKEND}
    assert replay(lionbits.Lion, kwargs, [torch.ones(4)], [StepInput([torch.ones(4)])]) is None


@pytest.mark.parametrize(
    "own",
    [
        {"percentile_clipping": 50},
        {"optim_bits": 8, "min_8bit_size": 1, "block_wise": False},
        {"cautious": "timm", "grad_clip": 0.3, "optim_bits": 4, "min_8bit_size": 1, "rounding": "nearest"},
    ],
    ids=["percentile_clipping", "one scale per tensor", "the rest"],
)
@pytest.mark.usefixtures("default_dtype")
def test_results_do_not_depend_on_the_default_dtype(own: dict[str, Any]) -> None:
    """Results depend on nothing but values; state has the types it has."""
    inputs = [StepInput([normal(step, 2, 64)]) for step in range(3)]
    assert replay(lionbits.Lion, {"lr": 0.0123, **own, **BACKEND}, [normal(9, 2, 64)], inputs) is None


@pytest.mark.usefixtures("default_dtype")
def test_learning_rates_beside_a_tensor_one_do_not_depend_on_the_default_dtype() -> None:
    groups: list[dict[str, Any]] = [{"lr": torch.tensor(0.02, dtype=torch.float32)}, {"lr": 0.0123}]
    inputs = [StepInput([normal(step, 5), normal(step + 9, 5)]) for step in range(2)]
    assert replay(lionbits.Lion, {"lr": 0.1, **BACKEND}, [normal(8, 5), normal(9, 5)], inputs, groups) is None


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.usefixtures("default_dtype")
def test_decoded_momentum_is_float32_whatever_the_default_dtype(bits: int) -> None:
    param = torch.nn.Parameter(normal(9, 2, 64))
    optimizer = lionbits.Lion([param], optim_bits=bits, min_8bit_size=1, backend="reference")
    assert optimizer.momentum(param).dtype == torch.float32
    param.grad = normal(1, 2, 64)
    optimizer.step()
    assert optimizer.momentum(param).dtype == torch.float32


@pytest.mark.parametrize("state_format", ["e3m4", "e0m7", "e1m6"])
def test_the_largest_momentum_harms_no_neighbour(state_format: str) -> None:
    """One bad element never touches its neighbours.

    In these formats float32(largest / top) * top is above the largest binary32 number. Such a momentum once decoded
    to infinity, was skipped from then on, and made its block's absmax infinite, hence every neighbour NaN. Magnitudes
    are therefore held at 2^127.
    """
    param = torch.nn.Parameter(torch.ones(1, 64))
    own: dict[str, Any] = {"optim_bits": 8, "state_format": state_format, "min_8bit_size": 1, "betas": (0.9, 0.0)}
    optimizer = lionbits.Lion([param], lr=0.1, **own, backend="reference")
    grad = torch.ones(1, 64)
    grad[0, 0] = torch.finfo(torch.float32).max
    grads = [grad, torch.ones(1, 64), torch.ones(1, 64)]
    for gradient in grads:
        param.grad = gradient
        optimizer.step()
    assert optimizer.momentum(param).isfinite().all()
    assert optimizer.skipped_elements() == 0
    inputs = [StepInput([gradient]) for gradient in grads]
    assert replay(lionbits.Lion, {"lr": 0.1, **own, **BACKEND}, [torch.ones(1, 64)], inputs) is None
