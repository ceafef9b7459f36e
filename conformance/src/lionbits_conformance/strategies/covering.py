"""A short list of plans in which every pair of settings that can stand together does."""

from __future__ import annotations

import functools
import itertools
import random
from collections import defaultdict

import torch

from lionbits_reference.spec import Plan

from .every import every_plan

#: Two or more settings of a plan, each with its name.
Settings = tuple[tuple[str, object], ...]


def settings(plan: Plan) -> Settings:
    """What a plan is made of, by name."""
    rounding = plan.param_rounding if plan.master_bits == 32 else f"{plan.param_rounding} {plan.master_bits}"
    return (
        ("format", plan.format.name),
        ("block", plan.format.block_size),
        ("parameters", plan.param_dtype),
        ("gradients", plan.grad_dtype),
        ("rounding", rounding),
        ("caution", plan.caution),
        ("non-finite", plan.nonfinite),
    )


def combinations(plan: Plan, size: int = 2) -> set[Settings]:
    """Every pair of settings that the plan has, or every three."""
    return set(itertools.combinations(settings(plan), size))


@functools.cache
def possible(size: int = 2) -> frozenset[Settings]:
    """Every pair of settings that some plan has, or every three."""
    return frozenset().union(*(combinations(plan, size) for plan in every_plan()))


@functools.cache
def covering_plans(bits: int | None = None, dtype: torch.dtype | None = None) -> tuple[Plan, ...]:
    """Plans that together have every pair of settings which some plan has; of these, those of a stratum.

    Each is the one of a few that has most pairs which none before it has. The list is the same each time.
    """
    return tuple(plan for plan in _covering() if bits in (None, plan.format.bits) and dtype in (None, plan.param_dtype))


@functools.cache
def _covering() -> tuple[Plan, ...]:
    chance = random.Random(0)
    having: dict[Settings, list[Plan]] = defaultdict(list)
    for plan in every_plan():
        for pair in combinations(plan):
            having[pair].append(plan)
    missing = dict.fromkeys(sorted(having, key=lambda pair: (len(having[pair]), repr(pair))))
    chosen: list[Plan] = []
    while missing:
        plans = having[next(iter(missing))]
        some = chance.sample(plans, min(24, len(plans)))
        best = max(some, key=lambda plan: len(combinations(plan) & missing.keys()))
        for pair in combinations(best):
            missing.pop(pair, None)
        chosen.append(best)
    return tuple(chosen)
