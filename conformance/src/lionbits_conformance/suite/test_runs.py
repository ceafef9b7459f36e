"""Properties of whole runs, and the stateful test of an optimizer."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

import lionbits
from lionbits_conformance import oracle_check, runs, serving, strategies
from lionbits_conformance.state_machine import OptimizerStateMachine
from lionbits_reference.spec import Backend

pytestmark = pytest.mark.filterwarnings("ignore:optim_bits=2 is for research")


# The profile's examples of a property are shared out evenly over strata of plans.
PER_STRATUM = max(settings().max_examples // len(strategies.STRATA), 4)


@pytest.mark.parametrize(("bits", "dtype"), strategies.STRATA, ids=strategies.stratum_name)
@pytest.mark.parametrize("check", runs.RUNS)
@settings(max_examples=PER_STRATUM)
@given(data=st.data())
def test_run(
    check: str,
    bits: int,
    dtype: torch.dtype,
    data: st.DataObject,
    backend: Backend,
    backend_name: str,
    device: torch.device,
) -> None:
    """The property holds for any run."""
    run = serving.fit_run(data.draw(strategies.runs(bits=bits, dtype=dtype)), backend, device, bits, dtype)
    runs.RUNS[check](lionbits.Lion, backend_name, run, device)


@pytest.mark.parametrize(("bits", "dtype"), strategies.STRATA, ids=strategies.stratum_name)
@settings(max_examples=2 * PER_STRATUM)
@given(data=st.data())
def test_oracle(
    bits: int, dtype: torch.dtype, data: st.DataObject, backend: Backend, backend_name: str, device: torch.device
) -> None:
    """Exact rational arithmetic comes to the same bits."""
    run = serving.fit_run(data.draw(strategies.trials(bits=bits, dtype=dtype)), backend, device, bits, dtype)
    oracle_check.oracle_agrees(lionbits.Lion, backend_name, run, device)


def test_state_machine(backend_name: str, device: torch.device) -> None:
    """Whatever happens to an optimizer between its steps, it holds the bits of one that is left alone."""

    class Checked(OptimizerStateMachine):
        pass

    Checked.backend, Checked.device = backend_name, device
    current = settings()
    examples = max(current.max_examples // 4, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        run_state_machine_as_test(Checked, settings=settings(current, max_examples=examples, stateful_step_count=30))
    print(f"{Checked.events} events")
