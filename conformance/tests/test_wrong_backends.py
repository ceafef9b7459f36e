"""A backend with one fault of a kind that a suite of few shapes, positions and steps would not see is rejected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis.errors import FlakyFailure

from lionbits_conformance import bits, directed, properties, strategies
from lionbits_conformance.cases import Case
from lionbits_conformance.patched_import import Edit, patched_import
from lionbits_conformance.strategies import common_plans, covering_plans
from lionbits_conformance.suite.test_directed import SOME

from .wrong_backends import WRONG

#: A threshold by one number too high or too low.
THRESHOLDS = {
    f"{name} {side}": Edit("lionbits_reference/formats.py", f"{name} = {value}", f"{name} = {value} * {factor}")
    for name, value in (("TINY", "2.0**-100"), ("HUGE", "2.0**127"))
    for side, factor in (("above", "(1 + 2.0**-23)"), ("below", "(1 - 2.0**-24)"))
}


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """What some of the faults change is put right."""
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(grad)


def made(name: str) -> Iterator[Case]:
    """Cases of ``test_directed``: all that the function of this name in ``directed`` makes there."""
    make: Any = getattr(directed, name)
    if name == "large":
        yield from make().values()
    elif name == "many":
        yield from (make(SOME[0], count) for count in directed.MANY)
    elif name == "plain_calls":
        yield from (case for plan in common_plans() for case in make(plan))
    else:
        yield from map(make, covering_plans() if name == "last_blocks" else SOME)


def drawn(check: str, wrong: Any) -> None:
    """Put a property to a backend, as often as ``ci`` does."""
    for bits_of_state, dtype in strategies.STRATA:

        @settings(
            max_examples=16,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            derandomize=True,
            report_multiple_bugs=False,
        )
        @given(strategies.cases(bits=bits_of_state, dtype=dtype))
        def holds(case: Case) -> None:
            properties.CALLS[check](wrong, case, properties.CPU)

        holds()


def put(by: str, wrong: Any) -> None:
    """Put a property, or the cases of this name, to a backend."""
    if by in properties.CALLS:
        drawn(by, wrong)
    else:
        for case in made(by):
            properties.step_equals_reference(wrong, case)


@pytest.mark.parametrize(("name", "by"), WRONG)
def test_a_wrong_backend_is_rejected(name: str, by: str) -> None:
    """What is said to reject it does. A race does not show in every call, which Hypothesis calls flaky."""
    with pytest.raises((bits.Disagreement, FlakyFailure)):
        put(by, WRONG[name, by]())


@pytest.mark.parametrize("edit", THRESHOLDS.values(), ids=THRESHOLDS)
def test_a_threshold_by_one_is_rejected(edit: Edit) -> None:
    """The last number that has a scale, the last that is not held, and their neighbours are drawn."""
    with patched_import([edit]) as copy, pytest.raises(bits.Disagreement):
        drawn("step_equals_reference", copy.reference)
