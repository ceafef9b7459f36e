"""What is put to a mutant: the properties of the suite as functions of a backend, or of an optimizer class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

import lionbits
from lionbits_reference.spec import FORMATS, Format, Plan

from . import bits, norms, oracle_check, properties, runs, scenarios, strategies, vectors
from .cases import Case, TensorCase
from .suite import test_exhaustive
from .vectors import replays

#: How many examples a property gets that is not drawn for each stratum of plans, in examples of one that is.
LAUNCHES, SCENARIOS, LONG_SCENARIOS, NORMS, MANY = 12.0, 6.0, 0.5, 6.0, 12.0


class Check(NamedTuple):
    """One property put to a mutant.

    Attributes:
        name: of the property.
        examples: what draws them, or all of them.
        holds: raises where the property does not hold.
        share: examples, in those that a property gets for each stratum of plans.
    """

    name: str
    examples: st.SearchStrategy[Any] | Sequence[Any]
    holds: Callable[[Any], object]
    share: float = 1.0


def of_calls(backend: Any, kinds: Sequence[str]) -> Iterator[Check]:
    """The simplest calls, then every property of calls on each stratum of plans in turn, then what is counted out."""
    plans = [Plan(dtype, dtype, Format.of(width)) for width, dtype in strategies.STRATA]
    for name, check in properties.CALLS.items():
        yield Check(
            name, [Case(plan, (TensorCase((3, 41)),), weight_decay=0.1) for plan in plans], _of_call(check, backend)
        )
    for name, check in properties.CALLS.items():
        for width, dtype in strategies.STRATA:
            yield Check(name, strategies.cases(kinds, bits=width, dtype=dtype), _of_call(check, backend))
    gradients = [
        (dtype, width, policy)
        for dtype in (torch.bfloat16, torch.float16)
        for width in (32, 8, 4)
        for policy in ("skip", "propagate")
    ]
    every: Callable[..., None] = test_exhaustive.test_every_gradient
    yield Check("every_gradient", gradients, lambda of: every(*of, backend, properties.CPU))
    step = _of_call(properties.step_equals_reference, backend)
    yield Check("twenty_tensors", strategies.cases(kinds, most=20), step, MANY)
    for name in (name for names in FORMATS.values() for name in names):
        yield Check(
            "every_code_decodes",
            strategies.formats(name=name),
            lambda format: properties.every_code_decodes(backend, format, properties.CPU),
        )


def of_kernels(backend: Any, kinds: Sequence[str], oracle: bool) -> Iterator[Check]:
    """Those of calls, and of optimizers whose front end is right."""
    yield from of_calls(backend, kinds)
    if oracle:
        yield Check(
            "vectors", vectors.cases("steps"), lambda case: _vector_agrees(lionbits.Lion, case, backend=backend)
        )
        yield from _of_oracle(lionbits.Lion, backend, kinds)


def of_front_ends(lion: Callable[..., Any], kinds: Sequence[str], oracle: bool) -> Iterator[Check]:
    """Those of runs, over the reference."""
    if oracle:
        yield Check("vectors", vectors.cases("steps"), lambda case: _vector_agrees(lion, case, backend="reference"))
        yield Check("norm_agrees", norms.LONG, lambda drawn: norms.norm_agrees(lion, "reference", drawn))
        yield Check("norm_agrees", norms.hard_norms(), lambda drawn: norms.norm_agrees(lion, "reference", drawn), NORMS)
        yield from _of_oracle(lion, "reference", kinds)
    for name, check in runs.RUNS.items():
        for width, dtype in strategies.STRATA:
            yield Check(name, strategies.runs(kinds, bits=width, dtype=dtype), _of_run(check, lion))


def _of_oracle(lion: Callable[..., Any], backend: Any, kinds: Sequence[str]) -> Iterator[Check]:
    for width, dtype in strategies.STRATA:
        drawn = strategies.trials(kinds, width, dtype)
        yield Check("oracle_agrees", drawn, lambda run: oracle_check.oracle_agrees(lion, backend, run))
    for name, drawn_scenarios, share in (
        ("groups_in_one_launch", scenarios.launches(), LAUNCHES),
        ("any_scenario", scenarios.scenarios(), SCENARIOS),
        ("long_scenarios", scenarios.long_scenarios(), LONG_SCENARIOS),
    ):
        yield Check(name, drawn_scenarios, lambda scenario: scenarios.scenario_agrees(lion, backend, scenario), share)


def _vector_agrees(lion: Callable[..., Any], case: Any, **settings: Any) -> None:
    difference = replays.replay(case, lion, **settings)
    if difference is not None:
        raise bits.Disagreement(difference)


def _of_call(check: properties.Property, backend: Any) -> Callable[[Any], None]:
    return lambda case: check(backend, case, properties.CPU)


def _of_run(check: runs.Property, lion: Callable[..., Any]) -> Callable[[Any], None]:
    return lambda run: check(lion, "reference", run, properties.CPU)
