"""Callers of compiled code keep to what it was compiled for: here, and only here, it looks at sizes and strides."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import lionbits
from lionbits_compiled import compiling

#: Whole blocks where they lie, ragged and short rows, many of one shape, a single element and none.
SHAPES = [*((24, 40), (100,)) * 16, (300, 256), (64, 512), (33, 37), (), (0, 4), (128, 130), (1 << 15,)]


@pytest.fixture(autouse=True)
def sizes_are_checked(monkeypatch: pytest.MonkeyPatch, compiled_anew: None) -> None:
    """As torch does by default."""
    plain = compiling._settings()
    monkeypatch.setattr(compiling, "_settings", lambda: plain | {"size_asserts": True})


def trained(name: str, dtype: torch.dtype, settings: dict[str, object]) -> Sequence[torch.Tensor]:
    """Parameters and state after two steps."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    params.append(torch.nn.Parameter(torch.randn(512, 300, generator=generator).to(dtype).t()))
    optimizer = lionbits.Lion(params, lr=1e-2, weight_decay=0.1, backend=name, **settings)  # type: ignore[arg-type]
    for _ in range(2):
        for param in params:
            param.grad = torch.empty_like(param).copy_(torch.randn(param.shape, generator=generator))
        optimizer.step()
    states = [value for param in params for value in optimizer.state[param].values() if isinstance(value, torch.Tensor)]
    return [*params, *states]


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        (torch.float32, {"optim_bits": 32, "cautious": "mask"}),
        (torch.bfloat16, {"optim_bits": 32, "param_rounding": "compensated"}),
        (torch.float32, {"optim_bits": 8}),
        (torch.float32, {"optim_bits": 8, "block_wise": False}),
        (torch.bfloat16, {"optim_bits": 4, "param_rounding": "stochastic"}),
    ],
    ids=str,
)
def test_every_call_is_of_the_sizes_it_says(dtype: torch.dtype, settings: dict[str, object]) -> None:
    for got, want in zip(*(trained(name, dtype, settings) for name in ("compiled", "reference")), strict=True):
        assert torch.equal(got, want)


def test_a_caller_that_is_wrong_is_seen() -> None:
    """Else the test above would hold of any."""
    compiled = compiling.Compiled(lambda x: x.mul_(2.0), "a test with strides")
    compiled(torch.ones(4, 8))
    with pytest.raises(AssertionError, match="stride"):
        compiled(torch.ones(8, 4).t())
