"""The family that is bound to this backend: the same names, the same bits, its own steps."""

from __future__ import annotations

import pytest

from lionbits_compiled import optim
from lionbits_conformance import families


@pytest.mark.parametrize("name", families.NAMES)
def test_bound_to_compiled(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    families.require_bound(monkeypatch, optim, name, "lionbits_compiled.backend.steps")


def test_an_argument_chooses_another() -> None:
    families.require_argument_wins(optim)
