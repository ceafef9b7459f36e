"""Calls of a backend: any plan, tensors, numbers, and a few combinations that chance would hardly draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from lionbits_conformance.cases import RENEWALS, Case
from lionbits_conformance.values import KINDS, PARAM_KINDS
from lionbits_reference.spec import ROUNDINGS

from .plans import plans
from .tensors import tensors

#: Positions of parameters: first, ordinary, and where an index would no longer fit in 8, 16 or 31 bits.
INDICES = (1, 0, 255, 256, 2**16, 2**31)


@st.composite
def cases(
    draw: st.DrawFn,
    kinds: Sequence[str] = KINDS,
    most: int = 4,
    bits: int | None = None,
    dtype: torch.dtype | None = None,
) -> Case:
    """A call of a backend: any plan (or those of a stratum), 1..``most`` tensors, any numbers."""
    plan = draw(plans(bits, dtype))
    members = st.lists(tensors(kinds, block=plan.format.block_size or 256), min_size=1, max_size=most)
    case = Case(plan=plan, tensors=tuple(draw(members)), **draw(numbers()))
    chosen = draw(st.integers(0, len(_DIRECTED) + 2))
    if chosen < len(_DIRECTED):
        kind, direct = _DIRECTED[chosen]
        return direct(draw, case) if kind in kinds else case
    return case


@st.composite
def many_tensors(draw: st.DrawFn, count: int) -> Case:
    """A call with many tensors: a few that were drawn, again and again, none with the numbers of another."""
    case = draw(cases(most=6))
    some = [replace(t, shape=t.shape if math.prod(t.shape) < 600 else (5, 33)) for t in case.tensors]
    many = tuple(replace(some[j % len(some)], seed=j) for j in range(count))
    return replace(case, tensors=many, updates=min(case.updates, 2))


def _on_ties(draw: st.DrawFn, case: Case) -> Case:
    """Codes and half-way between them, exactly: with b2 = 0 the new momentum is the gradient."""
    ties = tuple(replace(t, kind="ties", momentum_kind="zeros") for t in case.tensors)
    return _alone(replace(case, tensors=ties))


def _at_thresholds(draw: st.DrawFn, case: Case) -> Case:
    """Blocks whose largest magnitude is where a scale begins, where it ends, or next to these."""
    at = tuple(replace(t, kind="threshold", momentum_kind="zeros") for t in case.tensors)
    plan = replace(case.plan, grad_dtype=torch.float32)
    return _alone(replace(case, tensors=at, plan=plan))


def _sloping(draw: st.DrawFn, case: Case) -> Case:
    """Blocks that take many threads, rows that fill them, and neighbours that are larger by far."""
    if not case.plan.format.block_size:
        return case
    size = draw(st.sampled_from((512, 1024, 2048, 4096)))
    shape = draw(st.sampled_from(((3, 1031), (2, 2080), (4099,))))
    sloping: dict[str, Any] = {
        "kind": "sloping",
        "momentum_kind": "zeros",
        "shape": shape,
        "beyond": 0,
        "layout": "contiguous",
        "grad_layout": "contiguous",
    }
    long = tuple(replace(t, **sloping) for t in case.tensors)
    return replace(case, tensors=long, plan=replace(case.plan, format=replace(case.plan.format, block_size=size)))


def _far(draw: st.DrawFn, case: Case) -> Case:
    """Momentum made of the gradient alone, so that every code shows its noise; positions that pass a power of two."""
    start = draw(st.sampled_from((2**33 - 32, 2**33 - 10)))
    far = tuple(replace(t, momentum_kind="zeros", start=start) for t in case.tensors)
    return replace(case, tensors=far, betas=(case.betas[0], 0.0))


def _cancelling(draw: st.DrawFn, case: Case) -> Case:
    """c next to zero, where the last bits are all there is: no dtype or scale may blur them."""
    close = tuple(replace(t, kind="cancelling", momentum_kind="normal") for t in case.tensors)
    return replace(case, tensors=close, plan=replace(case.plan, grad_dtype=torch.float32), grad_scale=1.0)


def _huge(draw: st.DrawFn, case: Case) -> Case:
    """The largest numbers there are, as momentum."""
    huge = tuple(replace(t, kind="overflow", momentum_kind="zeros", magnitude=0) for t in case.tensors)
    return _alone(replace(case, tensors=huge, plan=replace(case.plan, grad_dtype=torch.float32)))


def _tiny(draw: st.DrawFn, case: Case) -> Case:
    """Whole blocks below what a scale is kept for."""
    tiny = tuple(replace(t, kind="denormal", momentum_kind="zeros") for t in case.tensors)
    return replace(case, tensors=tiny, plan=replace(case.plan, grad_dtype=torch.float32))


def _at_limits(draw: st.DrawFn, case: Case) -> Case:
    """Parameters that leave their dtype, vanish in it or keep the sign of zero; ordinary gradients move them."""
    kind = draw(st.sampled_from(PARAM_KINDS[1:]))
    rate = draw(
        st.sampled_from({"largest": (48.0, 2.0**119, 2.0**120), "subnormal": (2.0**-24, 2.0**-130)}.get(kind, (0.0,)))
    )
    at = tuple(replace(t, kind="normal", magnitude=0, param_kind=kind) for t in case.tensors)
    return replace(case, tensors=at, lr=rate, weight_decay=draw(st.sampled_from((0.0, 0.1))), grad_scale=1.0)


def _alone(case: Case) -> Case:
    """The case with the gradients as new momentum, exactly."""
    return replace(case, betas=(case.betas[0], 0.0), grad_scale=1.0)


#: Learning rates that carry a parameter out of its dtype, or from one subnormal number to another.
_RATES = {"largest": (48.0, 2.0**119, 2.0**120), "subnormal": (2.0**-24, 2.0**-130)}

#: What is made of a case that was drawn, each in turn, and the kind of gradients without which it is left out.
_DIRECTED: tuple[tuple[str, Callable[[st.DrawFn, Case], Case]], ...] = (
    ("ties", _on_ties),
    ("threshold", _at_thresholds),
    ("sloping", _sloping),
    ("normal", _far),
    ("cancelling", _cancelling),
    ("overflow", _huge),
    ("denormal", _tiny),
    ("normal", _at_limits),
)


def numbers() -> st.SearchStrategy[dict[str, Any]]:
    """The numbers of a :class:`Case`."""
    beta = st.sampled_from((0.9, 0.99, 0.0, 0.5, 0.95, 0.999))
    return st.fixed_dictionaries(
        {
            "betas": st.tuples(beta, beta),
            "rounding": st.sampled_from(ROUNDINGS),
            "seed": st.sampled_from((0, 1, 2**32, 2**64 - 1)) | st.integers(0, 2**64 - 1),
            "lr": st.sampled_from((1e-3, 0.3, 0.0, 1.0, 1e-8, 3e-4)),
            "weight_decay": st.sampled_from((0.1, 0.3, 0.0, 3.0)),
            "grad_scale": st.sampled_from((1.0, -1.0, 0.37, 2.0**-16)) | st.sampled_from((1.0, 0.0, math.inf)),
            "step": st.sampled_from((1, 2, 1000, 65_537, 2**33 + 1)) | st.integers(1, 100_000),
            "updates": st.integers(1, 3) | st.sampled_from((1, 2, 3, 3, 12)),
            "index": st.sampled_from(INDICES),
            "skipped": st.sampled_from((0, 0, 2**31 - 2, 2**32 - 2)),
            "renewal": st.sampled_from(RENEWALS),
        }
    )
