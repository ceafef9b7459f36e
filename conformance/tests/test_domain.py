"""What the suite draws from, and the table of what it has drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import torch
from hypothesis import given, seed, settings

from lionbits_conformance import strategies
from lionbits_conformance.cases import Case, TensorCase
from lionbits_conformance.domain import Domain
from lionbits_conformance.strategies import covering
from lionbits_reference.spec import Format, Plan

LLM = Plan(torch.bfloat16, torch.bfloat16, Format.of(8))


def test_the_covering_plans_have_every_pair_of_settings() -> None:
    """With a hundredth of all plans."""
    plans = strategies.covering_plans()
    met = set().union(*(covering.combinations(plan) for plan in plans))
    assert met == covering.possible()
    assert len(plans) < 130
    parts = [strategies.covering_plans(*stratum) for stratum in strategies.STRATA]
    assert Counter(plan for part in parts for plan in part) == Counter(plans)


def test_common_plans_are_some_thirty() -> None:
    """All different, each with who uses it; a bfloat16 LLM at 8 bits among them."""
    plans = strategies.common_plans()
    assert len(set(plans)) == len(plans) >= 30
    assert LLM in plans
    assert all(common.users for common in strategies.COMMON_PLANS)


def test_half_of_all_that_is_drawn_are_common_plans() -> None:
    """Over all strata."""
    common, drawn = set(strategies.common_plans()), []
    for bits, dtype in strategies.STRATA:

        @seed(0)
        @settings(max_examples=40, database=None, deadline=None)
        @given(strategies.cases(bits=bits, dtype=dtype))
        def take(case: Case) -> None:
            drawn.append(case.plan in common)

        take()
    assert 0.45 < sum(drawn) / len(drawn) < 0.6


def test_what_processes_have_counted_is_added_up() -> None:
    """As numbers and texts, which is all that they can send."""
    first, second = Domain(), Domain()
    first.add(Case(LLM, (TensorCase((6, 300), layout="padded"),)))
    second.add(Case(LLM, (TensorCase((2, 257)), TensorCase((70, 255), kind="ties")), updates=12))
    both = Domain()
    for part in (first, second):
        both.merge(json.loads(json.dumps(part.packed())))
    assert both.plans == {LLM}
    assert both.calls == both.common == 2
    assert both.counts["layout", "padded"] == 1
    assert both.counts["last block", "one short of whole"] == 1
    lines = "\n".join(both.table())
    assert "common plans                 1 of 33" in lines
    assert "never" in lines


def test_ci_ends_with_the_table() -> None:
    """Whose first line says how many calls were drawn; other profiles have none."""
    command = [
        sys.executable,
        "-m",
        "lionbits_conformance",
        "-p",
        "no:cacheprovider",
        "-q",
        "-k",
        "common_plan and e2m1",
    ]
    path = os.pathsep.join(sys.path)
    for profile, there in (("ci", True), ("smoke", False)):
        done = subprocess.run(
            [*command, "--profile", profile],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert ("what was drawn" in done.stdout) == there
