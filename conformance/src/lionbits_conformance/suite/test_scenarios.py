"""Scenarios of an optimizer on the backend, beside the oracle."""

import pytest
import torch
from hypothesis import given, settings

import lionbits
from lionbits import select
from lionbits_conformance import norms, scenarios

pytestmark = pytest.mark.filterwarnings("ignore:optim_bits=2 is for research")

HALF, FEW = max(settings().max_examples // 2, 10), max(settings().max_examples // 25, 2)


def compare(scenario: scenarios.Scenario, backend_name: str, device: torch.device) -> None:
    """Compare, unless the scenario needs a plan that the backend does not serve."""
    if device.type != "cpu":
        pytest.skip("scenarios are compared on the CPU; elsewhere test_oracle draws such runs")
    try:
        scenarios.scenario_agrees(lionbits.Lion, backend_name, scenario)
    except select.NotServed:
        return


@settings(max_examples=HALF)
@given(scenario=scenarios.scenarios())
def test_any_scenario(scenario: scenarios.Scenario, backend_name: str, device: torch.device) -> None:
    """Groups that differ in everything; settings that change; missing gradients, loss scales, copies."""
    compare(scenario, backend_name, device)


@given(scenario=scenarios.launches())
def test_groups_in_one_launch(scenario: scenarios.Scenario, backend_name: str, device: torch.device) -> None:
    """Groups that one launch updates and that differ in the rest, one setting changing at a time."""
    compare(scenario, backend_name, device)


@settings(max_examples=FEW)
@given(scenario=scenarios.long_scenarios())
def test_more_steps_than_norms_are_remembered(
    scenario: scenarios.Scenario, backend_name: str, device: torch.device
) -> None:
    """The history of percentile clipping wraps."""
    compare(scenario, backend_name, device)


@settings(max_examples=HALF)
@given(drawn=norms.hard_norms())
def test_norm(drawn: norms.HardNorm) -> None:
    """Squares are added in the order that is the norm's meaning."""
    norms.norm_agrees(lionbits.Lion, "reference", drawn)


@pytest.mark.parametrize("drawn", norms.LONG, ids=str)
def test_long_norm(drawn: norms.HardNorm) -> None:
    """So are the sums of runs of 65,536 squares."""
    norms.norm_agrees(lionbits.Lion, "reference", drawn)
