"""Fixtures that the tests of the front end share."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from .family import FAMILY, Variant
from .twins import FORMS, Pair, believing_backend

_QUIET = pytest.mark.filterwarnings("ignore:optim_bits=2:UserWarning")  # what 2 bits cost; it has its own test


@pytest.fixture(params=[pytest.param(variant, id=variant.name, marks=_QUIET) for variant in FAMILY])
def variant(request: pytest.FixtureRequest) -> Variant:
    """Every optimizer of the family, one after the other."""
    chosen: Variant = request.param
    return chosen


@pytest.fixture
def believing() -> ModuleType:
    """A backend that makes its table once per batch; ``calls`` are the batches that it was given."""
    return believing_backend()


@pytest.fixture(params=FORMS)
def pair(request: pytest.FixtureRequest, believing: ModuleType) -> Iterator[Pair]:
    """A subject and its twin after three steps, in each form; two more follow the test."""
    made = Pair(believing, request.param)
    made.step(3)
    yield made
    made.step(2)
