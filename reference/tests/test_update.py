"""The update rule, element by element, against float32 arithmetic with one rounding per operation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lionbits_reference import backend, update
from lionbits_reference.spec import FLOAT32, Format, Hyper, Plan, decay_factor

from . import calls
from .calls import GradSlot, new_state, scalars, step_one
from .oracle import FLT_MAX, Floats, bits_of, from_bits, lion, round32, same_bits, tensor

BETAS = (0.9, 0.99)
HYPER = Hyper.of(BETAS)


def every_pattern(dtype: torch.dtype) -> torch.Tensor:
    """All 65,536 bit patterns of a 16-bit float."""
    return torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)


def momenta(g: Floats) -> dict[str, Floats]:
    """Momenta to meet every gradient with; ``cancelling`` ones make c zero or nearly so."""
    b1, a1 = np.float32(0.9), np.float32(1 - 0.9)
    with np.errstate(all="ignore"):
        cancelling = -(g * a1) / b1
    rng = np.random.default_rng(0)
    return {
        "zero": np.zeros_like(g),
        "minus zero": np.full_like(g, -0.0),
        "one": np.ones_like(g),
        "largest": np.full_like(g, -FLT_MAX),
        "smallest": np.full_like(g, from_bits(1)),
        "cancelling": np.where(np.isfinite(cancelling), cancelling, np.float32(1)),
        "nearly cancelling": np.nextafter(np.where(np.isfinite(cancelling), cancelling, 0), np.float32(0)),
        "random": (rng.standard_normal(g.shape) * 2.0 ** rng.integers(-140, 120, g.shape)).astype(np.float32),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("caution", ["none", "mask", "gradient"])
def test_every_16_bit_gradient_gives_the_rule(dtype: torch.dtype, nonfinite: str, caution: str) -> None:
    """All 65,536 gradients of a 16-bit type against eight momenta: p', m', the skip count and the aligned count."""
    grad = every_pattern(dtype)
    g = grad.to(torch.float64).numpy().astype(np.float32)  # exact
    rng = np.random.default_rng(1)
    p = (rng.standard_normal(g.shape) * 2.0 ** rng.integers(-20, 20, g.shape)).astype(np.float32)
    p[::97], p[1::97] = -0.0, 0.0
    plan = Plan(torch.float32, dtype, FLOAT32, caution=caution, nonfinite=nonfinite)
    keep = decay_factor(0.01, 0.3)
    for name, m in momenta(g).items():
        expected = lion(p, m, g, 0.01, 0.3, BETAS, caution, nonfinite)
        param, exp_avg = tensor(p), tensor(m)
        slot = GradSlot(param, grad, {"exp_avg": exp_avg}, 0)
        numbers = scalars([0.01], [keep])
        assert calls.aligned(plan, [slot], HYPER, numbers).tolist() == [int(expected.aligned.sum())], name
        assert same_bits(param, tensor(p)), "counting writes nothing"
        assert same_bits(exp_avg, tensor(m)), "counting writes nothing"
        skipped = step_one(plan, slot, HYPER, numbers)
        assert skipped == int(expected.skipped.sum()), name
        assert same_bits(param, tensor(expected.p)), name
        assert same_bits(exp_avg, tensor(expected.m)), name
        assert nonfinite == "propagate" or skipped >= (~np.isfinite(g)).sum() > 0


def test_one_element_in_exact_arithmetic() -> None:
    """numpy's float32 is IEEE-754 here too: exact fractions, rounded after each operation, give the same as both."""
    rng = np.random.default_rng(2)
    b1, b2, a1, a2 = (Fraction(float(np.float32(v))) for v in (*BETAS, 1 - BETAS[0], 1 - BETAS[1]))
    lr, wd = 0.003, 0.7
    lr32, wd32 = Fraction(float(np.float32(lr))), Fraction(float(np.float32(wd)))
    keep = Fraction(round32(1 - Fraction(round32(lr32 * wd32))))
    for scale in (-149, -140, -126, -60, 0, 60, 120):
        p, m, g = (np.ldexp(rng.standard_normal(40), scale).astype(np.float32) for _ in range(3))
        g[:10] = -m[:10] * np.float32(9)
        param, exp_avg = tensor(p), tensor(m)
        numbers = scalars([lr], [float(keep)])
        plan = Plan(torch.float32, torch.float32, FLOAT32)
        step_one(plan, GradSlot(param, tensor(g), {"exp_avg": exp_avg}, 0), HYPER, numbers)
        model = lion(p, m, g, lr, wd)
        for j in range(40):
            pj, mj, gj = (Fraction(float(v[j])) for v in (p, m, g))
            c = round32(Fraction(round32(mj * b1)) + Fraction(round32(gj * a1)))
            u = (c > 0) - (c < 0)
            moved = round32(Fraction(round32(pj * keep)) - lr32 * u)
            advanced = round32(Fraction(round32(mj * b2)) + Fraction(round32(gj * a2)))
            assert (param[j].item(), exp_avg[j].item()) == (moved, advanced)
            assert (float(model.p[j]), float(model.m[j])) == (moved, advanced)


@pytest.mark.parametrize("param_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_may_differ_and_p_is_rounded_once(param_dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    """p is read as float32 and rounded to its type once, to nearest even, whatever the gradient's type is."""
    generator = torch.Generator().manual_seed(3)
    param = torch.randn(500, generator=generator).to(param_dtype)
    grad = torch.randn(500, generator=generator).to(grad_dtype)
    m = torch.randn(500, generator=generator)
    p32, g32 = (v.to(torch.float64).numpy().astype(np.float32) for v in (param, grad))
    expected = lion(p32, m.numpy().copy(), g32, 1e-3, 0.1)
    slot = GradSlot(param, grad, {"exp_avg": m}, 0)
    step_one(Plan(param_dtype, grad_dtype, FLOAT32), slot, HYPER, scalars([1e-3], [decay_factor(1e-3, 0.1)]))
    if param_dtype == torch.bfloat16:
        raw = expected.p.view(np.uint32).astype(np.int64)
        stored = ((raw + 0x7FFF + (raw >> 16 & 1)) >> 16).astype(np.uint16).view(np.int16)
        assert torch.equal(param.view(torch.int16), tensor(stored))
    else:
        width = {torch.float32: np.float32, torch.float16: np.float16}[param_dtype]
        assert same_bits(param, tensor(expected.p.astype(width)))
    assert same_bits(m, tensor(expected.m))


@pytest.mark.parametrize("size", [1, 7, 8, 33])
def test_a_zero_or_nan_c_moves_nothing(size: int) -> None:
    """u = (c > 0) - (c < 0) is 0 for 0.0, -0.0 and NaN, so that even a parameter of -0.0 keeps its sign."""
    for m, g in ((0.0, 0.0), (0.0, -0.0), (-0.0, -0.0), (-0.0, 0.0), (float("nan"), 1.0), (1.0, float("nan"))):
        for caution in ("none", "mask", "gradient"):
            u = update.direction(torch.full((size,), m), torch.full((size,), g), HYPER, caution)
            assert same_bits(u, torch.zeros(size)), (m, g, caution)
            if not math.isnan(m + g):
                param = torch.full((size,), -0.0)
                slot = GradSlot(param, torch.full((size,), g), {"exp_avg": torch.full((size,), m)}, 0)
                step_one(Plan(torch.float32, torch.float32, FLOAT32, caution=caution), slot, HYPER, scalars([0.1]))
                assert same_bits(param, torch.full((size,), -0.0))


def test_grad_scale_is_one_more_rounding_and_minus_one_maximizes() -> None:
    """g = float32(grad) * grad_scale before anything else; a g that overflows so is skipped."""
    generator = torch.Generator().manual_seed(4)
    for scale in (-1.0, 0.3, -1e-3, 1e38):
        grad = torch.randn(300, generator=generator) * 10
        p, m = torch.randn(300, generator=generator), torch.randn(300, generator=generator)
        with np.errstate(over="ignore"):
            g = grad.numpy() * np.float32(scale)
        expected = lion(p.numpy().copy(), m.numpy().copy(), g, 0.1)
        slot = GradSlot(p, grad, {"exp_avg": m}, 0)
        skipped = step_one(Plan(torch.float32, torch.float32, FLOAT32), slot, HYPER, scalars([0.1], grad_scale=[scale]))
        assert skipped == expected.skipped.sum() == (~np.isfinite(g)).sum()
        assert (skipped > 0) == (scale == 1e38)
        assert same_bits(p, tensor(expected.p))
        assert same_bits(m, tensor(expected.m))


def test_a_momentum_that_overflows_is_skipped() -> None:
    """A finite g whose m' is not finite leaves p and m as they are, and counts; "propagate" lets it through."""
    hyper = Hyper(1.0, 1.0, 1.0, 1.0)  # not betas that the optimizer takes; they make m' = m + g
    for nonfinite in ("skip", "propagate"):
        p, m, g = torch.ones(40), torch.full((40,), FLT_MAX), torch.full((40,), FLT_MAX)
        g[3:] = -1.0
        plan = Plan(torch.float32, torch.float32, FLOAT32, nonfinite=nonfinite)
        skipped = step_one(plan, GradSlot(p, g, {"exp_avg": m}, 0), hyper, scalars([0.5]))
        assert skipped == (3 if nonfinite == "skip" else 0)
        assert p.tolist() == ([1.0] * 3 if nonfinite == "skip" else [0.5] * 3) + [0.5] * 37
        assert m[:3].tolist() == [FLT_MAX if nonfinite == "skip" else float("inf")] * 3


def test_new_state_is_zero_and_takes_the_gradients_sign() -> None:
    """The first step from zero moves against the gradient's sign by lr, and m' is g*(1-b2)."""
    plan = Plan(torch.float32, torch.float32, FLOAT32)
    grad = torch.tensor([3.0, -2.0, 0.0, 1e-30])
    param, state = torch.zeros(4), new_state(plan, (4,))
    step_one(plan, GradSlot(param, grad, state, 0), HYPER, scalars([0.25]))
    assert param.tolist() == [-0.25, 0.25, 0.0, -0.25]
    a2 = Fraction(float(np.float32(1 - 0.99)))
    assert [bits_of(v) for v in state["exp_avg"].tolist()] == [
        bits_of(round32(Fraction(v) * a2)) for v in grad.tolist()
    ]


@pytest.mark.parametrize("format", [FLOAT32, Format.of(8, block_size=32), Format.of(4, block_wise=False)])
def test_torchs_default_type_does_not_matter(format: Format) -> None:
    """With float64 as torch's default type every bit of parameter and state is the same."""
    generator = torch.Generator().manual_seed(5)
    start, grad = (torch.randn(3, 70, generator=generator).bfloat16() for _ in range(2))
    plan = Plan(torch.bfloat16, torch.bfloat16, format, "mask", "compensated", 24)
    results = []
    for default in (torch.float32, torch.float64):
        param, state = start.clone(), new_state(plan, start.shape)
        torch.set_default_dtype(default)
        try:
            step_one(plan, GradSlot(param, grad, state, 0), HYPER, scalars([0.01], [0.9]))
            decoded = backend.decode(format, state, param.shape)
            results.append([param, decoded, *state.values(), *backend.encode(format, decoded).values()])
        finally:
            torch.set_default_dtype(torch.float32)
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
