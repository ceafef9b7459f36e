"""Single cases: what people do every day, and what chance would not draw."""

from typing import Any

import pytest
import torch
from hypothesis import settings

from lionbits_conformance import directed, properties
from lionbits_conformance.cases import Case
from lionbits_conformance.domain import Domain
from lionbits_conformance.strategies import COMMON_PLANS, CommonPlan, common_plans, covering_plans
from lionbits_reference.spec import Backend, Plan

#: ``ci`` and ``nightly`` try all covering plans, the short profiles one of this many.
EVERY = max(200 // settings().max_examples, 1)

#: Of each kernel one.
PLAIN = ("step_equals_reference", "counts_equal_reference", "codec_equals_reference")

#: Plans of every width and parameter dtype, for cases that are about something else.
SOME = [common_plans(bits, dtype)[0] for bits, dtype in ((8, torch.bfloat16), (4, torch.float32), (32, torch.float16))]


def _name(value: object) -> str:
    if isinstance(value, CommonPlan):
        value = value.plan
    if not isinstance(value, Plan):
        return str(value)
    words = (value.param_dtype, value.grad_dtype, value.format, value.param_rounding, value.master_bits)
    return "-".join(str(word).removeprefix("torch.") for word in (*words, value.caution, value.nonfinite))


def _step(case: Case, backend: Backend, device: torch.device, domain: Domain) -> None:
    if reason := backend.supports(case.plan, device):
        pytest.skip(reason)
    domain.add(case)
    properties.step_equals_reference(backend, case, device)


@pytest.mark.parametrize("common", COMMON_PLANS, ids=_name)
def test_common_plan(common: CommonPlan, backend: Backend, device: torch.device, domain: Domain) -> None:
    """The plainest calls of every kernel under a plan that people use get the reference's bits."""
    if reason := backend.supports(common.plan, device):
        pytest.skip(reason)
    for case in directed.plain_calls(common.plan):
        domain.add(case)
        for check in PLAIN:
            properties.CALLS[check](backend, case, device)


@pytest.mark.parametrize("plan", covering_plans()[::EVERY], ids=_name)
def test_covering_plan(plan: Plan, backend: Backend, device: torch.device, domain: Domain) -> None:
    """Each pair of settings is met by the plans of this list: rows that end around the end of a block."""
    _step(directed.last_blocks(plan), backend, device, domain)


@pytest.mark.parametrize("plan", SOME, ids=_name)
@pytest.mark.parametrize("case", [directed.layouts, directed.positions, directed.long_run], ids=lambda f: f.__name__)
def test_situation(case: Any, plan: Plan, backend: Backend, device: torch.device, domain: Domain) -> None:
    """Every layout, position and length of a run gets the reference's bits."""
    _step(case(plan), backend, device, domain)


@pytest.mark.parametrize("case", directed.large().values(), ids=directed.large())
def test_large(case: Case, backend: Backend, device: torch.device, domain: Domain) -> None:
    """Large tensors get the reference's bits."""
    _step(case, backend, device, domain)


@pytest.mark.parametrize("plan", SOME, ids=_name)
@pytest.mark.parametrize("count", directed.MANY)
def test_many_tensors(count: int, plan: Plan, backend: Backend, device: torch.device, domain: Domain) -> None:
    """As many tensors in a call get the reference's bits."""
    _step(directed.many(plan, count), backend, device, domain)
