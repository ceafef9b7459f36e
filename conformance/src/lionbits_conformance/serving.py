"""Fitting of drawn examples to a backend that serves some plans only.

If the backend serves the example, nothing changes: the suite is the same for all that serve everything.
To wait until random draws fit a narrow backend would leave it without examples. A backend that means to serve
everything has a test of its own for that, over :func:`every_plan`: here a plan that it refuses by mistake is replaced.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import reject

import lionbits
from lionbits import select
from lionbits_reference.spec import Backend, Format, Plan

from .cases import Case
from .runs import OptimizerRun, Run
from .strategies import CAUTIOUS, every_plan

__all__ = ["every_plan", "fit_case", "fit_format", "fit_run", "plainest", "refusal"]


def plainest(
    backend: Backend, device: torch.device, bits: int | None = None, dtype: torch.dtype | None = None
) -> Plan | None:
    """Return the first plan of :func:`every_plan` that the backend serves."""
    return next((plan for plan in every_plan(bits, dtype) if not backend.supports(plan, device)), None)


def fit_case(
    case: Case, backend: Backend, device: torch.device, bits: int | None = None, dtype: torch.dtype | None = None
) -> Case:
    """Return the case; if its plan is refused, with a served plan of ``bits`` and ``dtype``."""
    reason = backend.supports(case.plan, device)
    if not reason:
        return case
    return replace(case, plan=_one_of(_served(backend, device, bits, dtype), case.tensors[0].seed, reason))


def fit_format(format: Format, backend: Backend, device: torch.device) -> Format:
    """Return the format; if no plan with it is served, another of the same name."""
    if not backend.supports(Plan(torch.float32, torch.float32, format), device):
        return format
    served = {plan.format for plan in _served(backend, device, format.bits, None) if plan.format.name == format.name}
    if not served:
        pytest.skip(f"the backend serves no plan with {format.name}")
    return format if format in served else max(served, key=lambda other: other.block_size)


def fit_run(
    run: Run, backend: Backend, device: torch.device, bits: int | None = None, dtype: torch.dtype | None = None
) -> Run:
    """Return the run, or one with served options in place of others. If that is not served, reject the example."""
    reason = refusal(run, backend, device)
    if not reason:
        return run
    served = [plan for plan in _served(backend, device, bits, dtype) if plan.grad_dtype == plan.param_dtype]
    plan = _one_of(served, run.tensors[0].seed, reason)
    options = run.options | {
        "optim_bits": plan.format.bits,
        "state_format": plan.format.name,
        "block_size": plan.format.block_size or None,
        "block_wise": not plan.format.tensor_wise,
        "cautious": _cautious(plan.caution, run.options["cautious"]),
        "param_rounding": plan.param_rounding,
        "master_bits": plan.master_bits,
        "nonfinite": plan.nonfinite,
    }
    run = replace(run, options=options, dtype=plan.param_dtype)
    if refusal(run, backend, device):
        reject()
    return run


def refusal(run: Run, backend: Backend, device: torch.device) -> str:
    """Return the optimizer's reason if the backend does not serve all plans of the run, else an empty string."""
    try:
        OptimizerRun(lionbits.Lion, run, device, backend=backend)
    except select.NotServed as error:
        return str(error)
    return ""


def _one_of(served: Sequence[Plan], chance: int, reason: str) -> Plan:
    """Return one of the plans by a number that was drawn already. Without any, skip the test."""
    if not served:
        pytest.skip(f"none of these plans is served; of the first that was drawn: {reason}")
    return served[chance % len(served)]


def _served(backend: Backend, device: torch.device, bits: int | None, dtype: torch.dtype | None) -> Sequence[Plan]:
    module: Any = backend  # mypy takes a protocol for unhashable
    return _list_served(module, device, bits, dtype)


@functools.cache
def _list_served(backend: Any, device: torch.device, bits: int | None, dtype: torch.dtype | None) -> tuple[Plan, ...]:
    return tuple(plan for plan in every_plan(bits, dtype) if not backend.supports(plan, device))


def _cautious(caution: str, drawn: Any) -> Any:
    """Return the optimizer's argument for a plan's caution; if several mean the same, the one that was drawn."""
    choices = CAUTIOUS[caution]
    return drawn if drawn in choices else choices[0]
