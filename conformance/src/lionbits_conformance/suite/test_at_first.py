"""The simplest call there is, before any that is drawn: where this fails, nothing else is tried."""

import pytest
import torch

from lionbits_conformance import properties, serving
from lionbits_conformance.cases import Case, TensorCase
from lionbits_reference.spec import Backend


def test_its_name(backend: Backend, backend_name: str) -> None:
    """``name`` is what its module is called behind ``lionbits_``."""
    assert backend.name == backend_name, f"the module lionbits_{backend_name} has name = {backend.name!r}"


def test_it_serves_something(backend: Backend, device: torch.device) -> None:
    """There is a plan that ``supports`` does not refuse."""
    if serving.plainest(backend, device) is None:
        says = backend.supports(next(serving.every_plan()), device)
        pytest.fail(f"supports refuses every plan on {device}; of the plainest it says: {says}", pytrace=False)


@pytest.mark.parametrize("bits", [32, 8, 4, 2])
@pytest.mark.parametrize("check", properties.CALLS)
def test_simplest_call(check: str, bits: int, backend: Backend, device: torch.device) -> None:
    """The property holds for three rows of ordinary numbers, an odd count, under the plainest plan that is served."""
    plan = serving.plainest(backend, device, bits)
    if plan is None:
        pytest.skip(f"the backend serves no plan with {bits} bits")
    properties.CALLS[check](backend, Case(plan, (TensorCase((3, 41)),), weight_decay=0.1), device)
