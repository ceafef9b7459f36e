"""Fixtures that the tests of the front end share."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import ModuleType

import pytest

from .differential import FORMS, DifferentialRun, address_caching_backend
from .family import FAMILY, Variant

if importlib.util.find_spec("cuda_on_cpu") is not None:
    from cuda_on_cpu import device
    from cuda_on_cpu.device import guard

    if not device.obstacle():
        guard.library()  # before the first backward of the process

_QUIET = pytest.mark.filterwarnings("ignore:optim_bits=2:UserWarning")  # what 2 bits cost; it has its own test


@pytest.fixture(params=[pytest.param(variant, id=variant.name, marks=_QUIET) for variant in FAMILY])
def variant(request: pytest.FixtureRequest) -> Variant:
    """Every optimizer of the family, one after the other."""
    chosen: Variant = request.param
    return chosen


@pytest.fixture
def address_caching() -> ModuleType:
    """A backend that makes its table once per batch; ``calls`` are the batches that it was given."""
    return address_caching_backend()


@pytest.fixture(params=FORMS)
def pair(request: pytest.FixtureRequest, address_caching: ModuleType) -> Iterator[DifferentialRun]:
    """A subject and its twin after three steps, in each form; two more follow the test."""
    made = DifferentialRun(address_caching, request.param)
    made.step(3)
    yield made
    made.step(2)
