"""Plans and formats: those that people use, those that cover every pair of settings, and any."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from lionbits_reference.spec import (
    CAUTIONS,
    FLOAT32,
    FORMATS,
    NONFINITE,
    PARAM_DTYPES,
    PARAM_ROUNDINGS,
    Format,
    Plan,
)

from .common_plans import common_plans
from .covering import covering_plans
from .every import BLOCK_SIZES

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
    """Any plan, or one of some bits and parameter dtype; half of all over the strata are common ones.

    Three strata of four have common plans; there these are four of five, as some calls that are drawn change the plan.
    """
    common, kind = common_plans(bits, dtype), draw(st.integers(0, 9))
    if kind < 8 and common:
        return draw(st.sampled_from(common))
    if kind < 9:
        return draw(st.sampled_from(covering_plans(bits, dtype)))
    return draw(any_plan(bits, dtype))


@st.composite
def any_plan(draw: st.DrawFn, bits: int | None = None, dtype: torch.dtype | None = None) -> Plan:
    """Every plan, or those of some bits and parameter dtype, setting by setting."""
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


def _bits(name: str) -> int:
    return 1 + int(name[1]) + int(name[3])
