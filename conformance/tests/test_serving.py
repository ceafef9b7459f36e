"""What is put in the place of plans that a backend refuses, and that nothing else is taken for a refusal."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

import lionbits_reference as reference
from lionbits import select
from lionbits_conformance import serving
from lionbits_conformance.cases import TensorCase
from lionbits_conformance.runs import Run

CPU = torch.device("cpu")


def test_the_reference_serves_every_plan() -> None:
    """And there are as many as the settings allow: no two are equal."""
    plans = list(serving.every_plan())
    assert [plan for plan in plans if reference.supports(plan, CPU)] == []
    assert len(set(plans)) == len(plans) > 10_000


def test_an_error_is_no_refusal() -> None:
    """An optimizer that cannot be made for another reason is a failure, not a plan that is not served."""
    run = Run({"lr": -1.0}, (TensorCase((3, 40)),), dtype=torch.float32)
    with pytest.raises(ValueError, match="lr"):
        serving.refusal(run, reference, CPU)


def test_a_refusal_has_a_type_of_its_own() -> None:
    """Which callers can tell from every other ValueError."""
    run = Run({"optim_bits": 8}, (TensorCase((3, 40)),), dtype=torch.float32)
    assert serving.refusal(run, reference, CPU) == ""
    narrow = ModuleType("lionbits_narrow")
    vars(narrow).update({key: getattr(reference, key) for key in select.CALLABLES}, name="narrow")
    vars(narrow)["supports"] = lambda plan, device: "not yet"
    assert "backend='narrow' cannot serve" in serving.refusal(run, narrow, CPU)
