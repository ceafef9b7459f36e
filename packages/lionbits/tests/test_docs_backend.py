"""What docs/writing-a-backend.md makes is a backend. Tests of the conformance package put it through the suite."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from lionbits import Lion32bit, select

from .family import gradient, weights
from .pages import due, run


def ours() -> dict[str, Any]:
    """The names that the page's blocks leave; nox is no tool of these tests, and a session but a function."""
    (page,) = due(__file__)
    return run(page, nox=SimpleNamespace(session=lambda function: function))


def test_its_blocks_together_are_a_backend_that_trains_like_the_reference() -> None:
    backend = ModuleType("lionbits_mine")
    vars(backend).update(ours())
    assert select.requested(backend) is backend
    trained = []
    for chosen in (backend, "reference"):
        params = weights()
        optimizer = Lion32bit(params, lr=1e-2, weight_decay=0.1, backend=chosen)
        for step in range(3):
            for position, param in enumerate(params):
                param.grad = gradient(param, position, step)
            optimizer.step()
        trained.append(params)
    assert all(map(torch.equal, *trained))


def test_its_session_of_nox_calls_the_suite() -> None:
    said: list[tuple[str, ...]] = []
    note = SimpleNamespace(install=lambda *args: said.append(args), run=lambda *args: said.append(args))
    ours()["conformance"](note)
    assert said[1][:5] == ("pytest", "--pyargs", "lionbits_conformance", "--backend", "mine")
