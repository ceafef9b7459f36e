"""The test vectors, replayed through the optimizer on the backend."""

from typing import Any

import pytest
import torch

import lionbits
from lionbits import select
from lionbits_conformance import vectors
from lionbits_conformance.vectors import replays


@pytest.mark.parametrize("case", vectors.cases("steps"), ids=lambda case: case["name"])
def test_steps(case: dict[str, Any], backend_name: str, device: torch.device) -> None:
    """The optimizer holds the oracle's bits after each step."""
    if device.type != "cpu":
        pytest.skip("vectors are replayed on the CPU; elsewhere test_oracle draws such runs")
    if reason := replays.obstacle(case):
        pytest.skip(reason)
    try:
        difference = replays.replay(case, lionbits.Lion, backend=backend_name)
    except select.NotServed as error:
        pytest.skip(str(error))
    assert difference is None, difference
