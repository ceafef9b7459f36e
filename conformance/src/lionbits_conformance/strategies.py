"""Hypothesis strategies over all plans, numbers, shapes, layouts and kinds of values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from lionbits_reference.spec import (
    CAUTIONS,
    FLOAT32,
    FORMATS,
    NONFINITE,
    PARAM_DTYPES,
    PARAM_ROUNDINGS,
    ROUNDINGS,
    Format,
    Plan,
)

from .cases import Case, TensorCase
from .runs import Run
from .values import KINDS, MOMENTUM_KINDS

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
LAYOUTS = ("contiguous", "offset", "transposed", "channels_last", "strided")
ODD = (1, 2, 3, 5, 7, 31, 32, 33, 37, 64, 97, 127, 128, 129, 251, 256, 257)


#: What is drawn from evenly, one after the other, as chance alone would pass some by: (bits, parameter dtype).
STRATA = [(bits, dtype) for dtype in PARAM_DTYPES for bits in (8, 32, 4, 2)]


def stratum_name(part: object) -> str:
    """How pytest names a part of a stratum."""
    return str(part).removeprefix("torch.")


def formats(bits: int | None = None, name: str | None = None) -> st.SearchStrategy[Format]:
    """Every eXmY, with every block size and tensor-wise, and float32; or those of one width, or of one name."""
    if bits == 32:
        return st.just(FLOAT32)
    names = [name] if name else [n for width, some in FORMATS.items() for n in some if bits in (None, width)]
    codes = st.builds(
        lambda name, block: Format.of(_bits(name), name, block or None, block_wise=block != 0),
        st.sampled_from(names),
        st.sampled_from((*BLOCK_SIZES, 0)),
    )
    return codes if bits or name else st.integers(0, 4).flatmap(lambda i: codes if i else st.just(FLOAT32))


@st.composite
def plans(draw: st.DrawFn, bits: int | None = None, dtype: torch.dtype | None = None) -> Plan:
    """Every plan, or those of some bits and parameter dtype."""
    dtype = draw(st.sampled_from(PARAM_DTYPES)) if dtype is None else dtype
    rounding = draw(st.sampled_from(PARAM_ROUNDINGS)) if dtype == torch.bfloat16 else "nearest"
    return Plan(
        param_dtype=dtype,
        grad_dtype=draw(st.sampled_from(PARAM_DTYPES)),
        format=draw(formats(bits)),
        caution=draw(st.sampled_from(CAUTIONS)),
        param_rounding=rounding,
        master_bits=draw(st.sampled_from((32, 24))) if rounding == "compensated" else 32,
        nonfinite=draw(st.sampled_from(NONFINITE)),
    )


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    """From empty and 0-d to odd primes, up to a few thousand elements."""
    sizes = st.sampled_from(ODD)
    small = st.sampled_from((1, 2, 3, 5))
    long = st.sampled_from((48, 144, 720, 1031, 1040))  # vectors that are no blocks, rows of many threads
    return st.one_of(
        st.tuples(small, sizes),
        st.tuples(small, long),
        st.tuples(sizes),
        st.tuples(small, small, sizes),
        st.tuples(small, small, small, small),
        st.sampled_from([(), (0,), (0, 5), (5, 0), (2, 1031), (4099,), (3, 4, 4, 4), (129, 8), (43, 1, 5, 5)]),
    )


def few() -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of at most 120 elements, for exact arithmetic."""
    return st.sampled_from(
        [(3, 37), (40,), (2, 33), (1, 64), (5,), (), (0, 4), (1, 1, 97), (2, 3, 4, 5), (21, 3), (7, 1, 2, 5)]
    )


def tensors(
    kinds: Sequence[str] = KINDS, sizes: st.SearchStrategy[tuple[int, ...]] | None = None
) -> st.SearchStrategy[TensorCase]:
    """A tensor of any shape, layout and kind of values."""
    return st.builds(
        TensorCase,
        shape=shapes() if sizes is None else sizes,
        kind=st.sampled_from(kinds),
        momentum_kind=st.sampled_from(MOMENTUM_KINDS),
        magnitude=st.integers(-8, 8) | st.integers(-80, 60),
        seed=st.integers(0, 10_000),
        layout=st.sampled_from(LAYOUTS),
        grad_layout=st.sampled_from(LAYOUTS),
        start=st.sampled_from((0, 0, 64, 2**33 - 32, 2**33 - 10, 2**34)),
    )


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
    chosen = draw(st.lists(tensors(kinds), min_size=1, max_size=most))
    case = Case(plan=plan, tensors=tuple(chosen), **draw(numbers()))
    place = draw(st.integers(0, 7))
    if place >= 6 and "ties" in kinds:
        # Codes and half-way between them, exactly: with b2 = 0 the new momentum is the gradient.
        on_ties = tuple(replace(t, kind="ties", momentum_kind="zeros") for t in chosen)
        return replace(case, tensors=on_ties, betas=(case.betas[0], 0.0), grad_scale=1.0)
    if place == 1 and "sloping" in kinds and plan.format.block_size:
        # Blocks that take many threads, rows that fill them, and neighbours that are larger by far.
        size = draw(st.sampled_from((512, 1024, 2048, 4096)))
        shape = draw(st.sampled_from(((3, 1031), (2, 2080), (4099,))))
        sloping: dict[str, Any] = {
            "kind": "sloping",
            "momentum_kind": "zeros",
            "layout": "contiguous",
            "grad_layout": "contiguous",
        }
        long = (replace(t, shape=shape, **sloping) for t in chosen)
        return replace(case, tensors=tuple(long), plan=replace(plan, format=replace(plan.format, block_size=size)))
    if place == 2:
        # Momentum made of the gradient alone, so that every code shows its noise; positions that pass a power of two.
        start = draw(st.sampled_from((2**33 - 32, 2**33 - 10)))
        far = tuple(replace(t, momentum_kind="zeros", start=start) for t in chosen)
        return replace(case, tensors=far, betas=(case.betas[0], 0.0))
    if place == 5 and "denormal" in kinds:
        # Whole blocks below what a scale is kept for.
        tiny = tuple(replace(t, kind="denormal", momentum_kind="zeros") for t in chosen)
        return replace(case, tensors=tiny, plan=replace(plan, grad_dtype=torch.float32))
    if place == 3 and "cancelling" in kinds:
        # c next to zero, where the last bits are all there is: no dtype or scale may blur them.
        close = tuple(replace(t, kind="cancelling", momentum_kind="normal") for t in chosen)
        return replace(case, tensors=close, plan=replace(plan, grad_dtype=torch.float32), grad_scale=1.0)
    if place == 4 and "overflow" in kinds:
        # The largest numbers there are, as momentum.
        huge = tuple(replace(t, kind="overflow", momentum_kind="zeros", magnitude=0) for t in chosen)
        plan = replace(plan, grad_dtype=torch.float32)
        return replace(case, tensors=huge, plan=plan, betas=(case.betas[0], 0.0), grad_scale=1.0)
    return case


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
            "grad_scale": st.sampled_from((1.0, -1.0, 0.37, 2.0**-16)),
            "step": st.sampled_from((1, 2, 1000, 65_537, 2**33 + 1)) | st.integers(1, 100_000),
            "updates": st.integers(1, 3),
        }
    )


@st.composite
def options(draw: st.DrawFn, dtype: torch.dtype, bits: int | None = None) -> dict[str, Any]:
    """Keyword arguments of an optimizer over parameters of ``dtype``."""
    chosen = draw(formats(bits))
    rounding = draw(st.sampled_from(PARAM_ROUNDINGS)) if dtype == torch.bfloat16 else "nearest"
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
        "cautious": draw(st.sampled_from((None, "mask", "c-optim", "timm", "gradient"))),
        "grad_clip": draw(st.sampled_from((0.0, 1.0, 1e-3))),
        "param_rounding": rounding,
        "master_bits": draw(st.sampled_from((32, 24))),
        "nonfinite": draw(st.sampled_from(("skip", "propagate"))),
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
    members = draw(st.lists(tensors(kinds, sizes), min_size=1, max_size=most))
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


def _bits(name: str) -> int:
    return 1 + int(name[1]) + int(name[3])
