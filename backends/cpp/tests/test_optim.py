"""The family that is bound to this backend: the same names, the same bits, its own steps."""

from __future__ import annotations

import pytest

from lionbits_conformance import families
from lionbits_cpp import optim


@pytest.mark.parametrize("name", families.NAMES)
def test_bound_to_cpp(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    families.require_bound(monkeypatch, optim, name, "lionbits_cpp.backend.call")


def test_an_argument_chooses_another() -> None:
    families.require_argument_wins(optim)
