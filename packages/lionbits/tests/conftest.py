"""Fixtures that the tests of the front end share."""

from __future__ import annotations

import pytest

from .family import FAMILY, Variant

_QUIET = pytest.mark.filterwarnings("ignore:optim_bits=2:UserWarning")  # what 2 bits cost; it has its own test


@pytest.fixture(params=[pytest.param(variant, id=variant.name, marks=_QUIET) for variant in FAMILY])
def variant(request: pytest.FixtureRequest) -> Variant:
    """Every optimizer of the family, one after the other."""
    chosen: Variant = request.param
    return chosen
