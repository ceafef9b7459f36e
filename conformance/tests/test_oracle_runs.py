"""The real optimizer, on the backend ``reference``, equals the oracle bit for bit, whatever is asked of it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

import lionbits
from lionbits_conformance import norms, scenarios

ALWAYS_THE_SAME = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), max_examples=200
)


@ALWAYS_THE_SAME
@given(scenarios.scenarios())
def test_any_scenario(scenario: scenarios.Scenario) -> None:
    scenarios.scenario_agrees(lionbits.Lion, "reference", scenario)


@settings(ALWAYS_THE_SAME, max_examples=150)
@given(scenarios.launches())
def test_groups_in_one_launch(scenario: scenarios.Scenario) -> None:
    scenarios.scenario_agrees(lionbits.Lion, "reference", scenario)


@settings(ALWAYS_THE_SAME, max_examples=8)
@given(scenarios.long_scenarios())
def test_more_steps_than_norms_are_remembered(scenario: scenarios.Scenario) -> None:
    scenarios.scenario_agrees(lionbits.Lion, "reference", scenario)


@pytest.mark.parametrize("drawn", norms.LONG, ids=str)
def test_long_norms(drawn: norms.HardNorm) -> None:
    norms.norm_agrees(lionbits.Lion, "reference", drawn)


@settings(ALWAYS_THE_SAME, max_examples=60)
@given(norms.hard_norms())
def test_norms_next_to_the_middle_of_two_numbers(drawn: norms.HardNorm) -> None:
    norms.norm_agrees(lionbits.Lion, "reference", drawn)
