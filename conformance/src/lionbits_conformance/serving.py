"""Backends that serve some plans only: what was drawn from all is brought within what this one serves.

Where the backend serves what was drawn, nothing changes: the suite is the same for all that serve everything.
Waiting for chance to draw what a narrow backend serves would leave it without examples. A backend that means to serve
everything says so in a test of its own, over :func:`every_plan`: here a plan refused by mistake only goes untried.
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
    """The first plan of :func:`every_plan` that the backend serves."""
    return next((plan for plan in every_plan(bits, dtype) if not backend.supports(plan, device)), None)


def fit_case(
    case: Case, backend: Backend, device: torch.device, bits: int | None = None, dtype: torch.dtype | None = None
) -> Case:
    """The case, or where its plan is refused the same with one of ``bits`` and ``dtype`` that is served."""
    reason = backend.supports(case.plan, device)
    if not reason:
        return case
    return replace(case, plan=_one_of(_served(backend, device, bits, dtype), case.tensors[0].seed, reason))


def fit_format(format: Format, backend: Backend, device: torch.device) -> Format:
    """The format, or where no plan with it is served another of the same name."""
    if not backend.supports(Plan(torch.float32, torch.float32, format), device):
        return format
    served = {plan.format for plan in _served(backend, device, format.bits, None) if plan.format.name == format.name}
    if not served:
        pytest.skip(f"the backend serves no plan with {format.name}")
    return format if format in served else max(served, key=lambda other: other.block_size)


def fit_run(
    run: Run, backend: Backend, device: torch.device, bits: int | None = None, dtype: torch.dtype | None = None
) -> Run:
    """The run, or one with options that are served in place of those that are not. Where that does not do: another."""
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
    """Empty where the backend serves all plans of the run, else what the optimizer says."""
    try:
        OptimizerRun(lionbits.Lion, run, device, backend=backend)
    except select.NotServed as error:
        return str(error)
    return ""


def _one_of(served: Sequence[Plan], chance: int, reason: str) -> Plan:
    """One of the plans by a number that was drawn anyway. Without any, the test is skipped."""
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
    """What the optimizer's argument has to be for a plan's; where several mean the same, the one that was drawn."""
    choices = CAUTIOUS[caution]
    return drawn if drawn in choices else choices[0]
