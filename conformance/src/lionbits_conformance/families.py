"""Checks of a family of optimizers that is bound to a backend: ``from lionbits_<name>.optim import Lion8bit``."""

from __future__ import annotations

import pickle
from types import ModuleType

import pytest
import torch

import lionbits

#: Every optimizer of lionbits.
NAMES = [
    name
    for name in lionbits.__all__
    if isinstance(cls := getattr(lionbits, name), type) and issubclass(cls, lionbits.Lion)
]


def require_bound(monkeypatch: pytest.MonkeyPatch, optim: ModuleType, name: str, vital: str) -> None:
    """Check that ``name`` exists and trains as its namesake, by that backend, in any environment, pickled too.

    Args:
        monkeypatch: pytest's.
        optim: the backend's module of that name.
        name: of :data:`NAMES`.
        vital: something that the backend cannot step without, as ``module.attribute``.
    """
    monkeypatch.setenv("LIONBITS_BACKEND", "reference")
    params, optimizer = _trained(getattr(optim, name))
    assert isinstance(optimizer, getattr(lionbits, name))
    twins, _ = _trained(getattr(lionbits, name))
    assert all(torch.equal(param, twin) for param, twin in zip(params, twins, strict=True))
    monkeypatch.setattr(vital, None)
    with pytest.raises((TypeError, AttributeError)):
        optimizer.step()
    params, optimizer = pickle.loads(pickle.dumps((params, optimizer)))
    params[0].grad = torch.ones(70, 61)
    with pytest.raises((TypeError, AttributeError)):
        optimizer.step()


def require_argument_wins(optim: ModuleType) -> None:
    """Check that ``backend=`` overrides the backend that the family is bound to."""
    with pytest.raises(lionbits.BackendUnavailable, match="nowhere"):
        optim.Lion8bit([torch.nn.Parameter(torch.ones(64, 64))], backend="nowhere")


def _trained(cls: type[lionbits.Lion]) -> tuple[list[torch.nn.Parameter], lionbits.Lion]:
    """Return two parameters after two steps, and the optimizer; the second parameter is too small for codes."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in [(70, 61), (33,)]]
    optimizer = cls(params, lr=1e-2)
    for _ in range(2):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
    return params, optimizer
