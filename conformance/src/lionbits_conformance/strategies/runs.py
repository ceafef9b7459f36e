"""Runs of optimizers: any options, groups, schedules, gradients that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from lionbits_conformance.runs import Run
from lionbits_conformance.values import KINDS
from lionbits_reference.spec import PARAM_DTYPES, ROUNDINGS

from .plans import plans
from .tensors import few, shapes, tensors

#: Elements of a matrix in a run, where pages may have one row each, at most; of two rows whatever they have.
LARGEST = 1024

#: What ``cautious`` of an optimizer may be where its plan's caution is this.
CAUTIOUS: dict[str, tuple[str | None, ...]] = {
    "none": (None,),
    "mask": ("mask", "c-optim", "timm"),
    "gradient": ("gradient",),
}


@st.composite
def options(draw: st.DrawFn, dtype: torch.dtype, bits: int | None = None) -> dict[str, Any]:
    """Keyword arguments of an optimizer over parameters of ``dtype``."""
    plan = draw(plans(bits, dtype))
    chosen = plan.format
    return {
        "betas": draw(st.sampled_from([(0.9, 0.99), (0.95, 0.98), (0.5, 0.9), (0.0, 0.999)])),
        "weight_decay": draw(st.sampled_from((0.0, 0.1, 0.3, 3.0))),
        "optim_bits": chosen.bits,
        "state_format": chosen.name,
        "block_size": chosen.block_size or None,
        "block_wise": not chosen.tensor_wise,
        "min_8bit_size": draw(st.sampled_from((1, 100, 4096))),
        "percentile_clipping": draw(st.sampled_from((100, 5, 50, 99))),
        "rounding": draw(st.sampled_from(ROUNDINGS)),
        "cautious": draw(st.sampled_from(CAUTIOUS[plan.caution])),
        "grad_clip": draw(st.sampled_from((0.0, 1.0, 1e-3))),
        "param_rounding": plan.param_rounding,
        "master_bits": plan.master_bits,
        "nonfinite": plan.nonfinite,
        "maximize": draw(st.booleans()),
        "seed": draw(st.sampled_from((0, 1, 2**64 - 1))),
    }


def trials(
    kinds: Sequence[str] = KINDS, bits: int | None = None, dtype: torch.dtype | None = None
) -> st.SearchStrategy[Run]:
    """Runs that are small enough for exact arithmetic."""
    return runs(kinds, 2, few(), bits, dtype)


@st.composite
def runs(
    draw: st.DrawFn,
    kinds: Sequence[str] = KINDS,
    most: int = 4,
    sizes: st.SearchStrategy[tuple[int, ...]] | None = None,
    bits: int | None = None,
    dtype: torch.dtype | None = None,
) -> Run:
    """A run of an optimizer: any options, two groups or one, schedules, gradients that are missing."""
    dtype = draw(st.sampled_from(PARAM_DTYPES)) if dtype is None else dtype
    second = st.fixed_dictionaries(
        {"weight_decay": st.sampled_from((0.0, 0.3)), "maximize": st.booleans()},
        optional={"betas": st.just((0.8, 0.95))},
    )
    chosen = draw(options(dtype, bits))
    usual = shapes(chosen["block_size"] or 256, LARGEST) if sizes is None else sizes
    members = draw(st.lists(tensors(kinds, usual), min_size=1, max_size=most))
    if draw(st.integers(0, 7)) == 7 and "sparse_sign" in kinds:
        # One element in thousands moves: where cautious factors differ most.
        members[0] = replace(members[0], shape=(2003,), kind="sparse_sign", layout="contiguous")
        chosen["cautious"] = draw(st.sampled_from(("timm", "mask", "c-optim")))
    return Run(
        options=chosen,
        tensors=tuple(members),
        groups=draw(st.none() | second),
        dtype=dtype,
        steps=draw(st.integers(2, 6)),
        rates=draw(st.sampled_from([(1e-2,), (1e-3, 0.0, 1.0), (0.3, 3e-4)])),
        missing=draw(st.sampled_from((0, 2, 3))),
        zero_first=draw(st.booleans()),
    )
