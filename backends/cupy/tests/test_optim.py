"""The family that is bound to this backend: the same names, the same bits, CUDA kernels."""

from __future__ import annotations

import pickle

import pytest
import torch

import lionbits
from lionbits_cupy import optim

FAMILY = [name for name in lionbits.__all__ if isinstance(getattr(lionbits, name), type)]
FAMILY = [name for name in FAMILY if issubclass(getattr(lionbits, name), lionbits.Lion)]


def trained(cls: type[lionbits.Lion]) -> tuple[list[torch.nn.Parameter], lionbits.Lion]:
    """Two parameters after two steps; the second is too small for codes."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in [(70, 61), (33,)]]
    optimizer = cls(params, lr=1e-2)
    for _ in range(2):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("name", FAMILY)
def test_bound_to_cupy(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every optimizer is there, whatever the environment says, and trains as its namesake does on the reference."""
    monkeypatch.setenv("LIONBITS_BACKEND", "reference")
    bound = getattr(optim, name)
    params, optimizer = trained(bound)
    assert isinstance(optimizer, getattr(lionbits, name))
    twins, _ = trained(getattr(lionbits, name))
    assert all(torch.equal(param, twin) for param, twin in zip(params, twins, strict=True))
    monkeypatch.setattr("lionbits_cupy.backend.launch", None)  # without it nothing steps
    with pytest.raises(TypeError):
        optimizer.step()
    params, optimizer = pickle.loads(pickle.dumps((params, optimizer)))
    params[0].grad = torch.ones(70, 61)
    with pytest.raises(TypeError):
        optimizer.step()


def test_an_argument_chooses_another() -> None:
    """``backend=`` wins over what the family is bound to."""
    param = torch.nn.Parameter(torch.ones(64, 64))
    with pytest.raises(lionbits.BackendUnavailable, match="nowhere"):
        optim.Lion8bit([param], backend="nowhere")
