"""Lives of an optimizer on the backend, beside the oracle."""

import pytest
import torch
from hypothesis import given, settings

import lionbits
from lionbits import select
from lionbits_conformance import lives, norms

pytestmark = pytest.mark.filterwarnings("ignore:optim_bits=2 is for research")

HALF, FEW = max(settings().max_examples // 2, 10), max(settings().max_examples // 25, 2)


def judge(life: lives.Life, backend_name: str, device: torch.device) -> None:
    """Compare, unless the life needs a plan that the backend does not serve."""
    if device.type != "cpu":
        pytest.skip("lives are compared on the CPU; elsewhere test_oracle draws such runs")
    try:
        lives.life_agrees(lionbits.Lion, backend_name, life)
    except select.NotServed:
        return


@settings(max_examples=HALF)
@given(life=lives.lives())
def test_any_life(life: lives.Life, backend_name: str, device: torch.device) -> None:
    """Groups that differ in everything; settings that change; missing gradients, loss scales, copies."""
    judge(life, backend_name, device)


@given(life=lives.launches())
def test_groups_in_one_launch(life: lives.Life, backend_name: str, device: torch.device) -> None:
    """Groups that one launch updates and that differ in the rest, one setting changing at a time."""
    judge(life, backend_name, device)


@settings(max_examples=FEW)
@given(life=lives.long_lives())
def test_more_steps_than_norms_are_remembered(life: lives.Life, backend_name: str, device: torch.device) -> None:
    """The history of percentile clipping wraps."""
    judge(life, backend_name, device)


@settings(max_examples=HALF)
@given(drawn=norms.hard_norms())
def test_norm(drawn: norms.HardNorm) -> None:
    """Squares are added in the order that is the norm's meaning."""
    norms.norm_agrees(lionbits.Lion, "reference", drawn)


@pytest.mark.parametrize("drawn", norms.LONG, ids=str)
def test_long_norm(drawn: norms.HardNorm) -> None:
    """So are the sums of runs of 65,536 squares."""
    norms.norm_agrees(lionbits.Lion, "reference", drawn)
