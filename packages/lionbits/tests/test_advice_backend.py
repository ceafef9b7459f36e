"""A warning where auto ends at the reference for a large model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from lionbits import Lion8bit, PagedLion8bit, advice, select

from .family import gradient


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the C++ backend away."""
    monkeypatch.delenv(select.ENVIRONMENT, raising=False)
    monkeypatch.setitem(select.PREFERENCE, "cpu", ("cpp_that_is_missing",))
    select._automatic.cache_clear()
    yield
    monkeypatch.undo()
    select._automatic.cache_clear()


def params(count: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(count // 1000 // 2, 1000)) for _ in range(2)]


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("kind", [Lion8bit, PagedLion8bit])
def test_a_large_model_on_the_reference_warns_once(kind: type[Lion8bit]) -> None:
    """It names the elements, the device, the faster backend, why that does not serve, and how to keep this one."""
    large = params(advice.MANY + 2000)
    with pytest.warns(
        UserWarning, match=r"1,002,000 elements on cpu.*cpp_that.*no module.*backend='reference'"
    ) as said:
        optimizer = kind(large)
    assert len(said) == 1
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        large[0].grad = gradient(large[0], 0, 1)
        optimizer.step()
        kind(large, backend="reference")
        kind(params(advice.MANY))


@pytest.mark.filterwarnings("error")
def test_a_fast_backend_does_not_warn() -> None:
    Lion8bit(params(advice.MANY + 2000))
