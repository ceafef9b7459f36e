"""Caution: which elements move, whose sign they take, and what the learning rate becomes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from lionbits_reference import backend, caution
from lionbits_reference.spec import FLOAT32, Format, Hyper, Plan

from . import calls
from .calls import GradSlot, new_state, scalars, step_one
from .oracle import lion, round32, same_bits, tensor

BETAS = (0.5, 0.75)  # exact in binary32, so signs of c can be worked out by hand
HYPER = Hyper.of(BETAS)
NAN, INF = float("nan"), float("inf")


def binary64(x: Fraction) -> Fraction:
    """Rounded to binary64, once: Python's int / int is."""
    return Fraction(x.numerator / x.denominator)


def expected_factor(cautious: str, aligned: int, numel: int) -> float:
    """The normaliser in exact arithmetic, its quotient rounded to binary64 and then to binary32."""
    if cautious == "mask":
        divisor = Fraction(max(aligned, 1))
    elif cautious == "c-optim":
        divisor = Fraction(aligned + 1)
    else:
        divisor = max(Fraction(aligned), binary64(numel * Fraction(1e-3)))
    return round32(binary64(numel / divisor))


@pytest.mark.parametrize("cautious", ["mask", "c-optim", "timm"])
def test_the_rate_factor_is_the_exact_quotient_rounded(cautious: str) -> None:
    """n/max(aligned, 1), n/(aligned + 1), or n/max(aligned, n/1000), up to counts beyond 2^31."""
    rng = np.random.default_rng(0)
    sizes = [1, 2, 3, 7, 999, 1000, 1001, 2**24 + 1, 2**31 + 11, 2**40 + 1, *rng.integers(1, 2**36, 40).tolist()]
    pairs = [
        (a, n) for n in sizes for a in {0, 1, n // 1001, n // 1000, n // 999, n // 2, n - 1, n, *rng.integers(0, n, 5)}
    ]
    aligned, numel = (torch.tensor([pair[j] for pair in pairs]) for j in (0, 1))
    factor = caution.rate_factor(cautious, aligned, numel)
    assert factor.dtype == torch.float32
    assert factor.tolist() == [expected_factor(cautious, a, n) for a, n in pairs]


def test_rate_factors_written_out() -> None:
    """Ten elements: all, half and none of them aligned; and a scalar."""
    aligned, numel = torch.tensor([10, 5, 0, 1, 0]), torch.tensor([10, 10, 10, 1, 1])
    assert caution.rate_factor("mask", aligned, numel).tolist() == [1, 2, 10, 1, 1]
    assert caution.rate_factor("c-optim", aligned, numel).tolist() == [
        round32(Fraction(v)) for v in (Fraction(10, 11), Fraction(10, 6), 10, Fraction(1, 2), 1)
    ]
    assert caution.rate_factor("timm", aligned, numel).tolist() == [1, 2, 1000, 1, 1000]


# c = m/2 + g/2:   m     g    sign of c
CASES: list[tuple[float, float, int | None]] = [
    (+1.0, +1.0, +1),
    (-1.0, -1.0, -1),
    (+3.0, -1.0, +1),  # opposite
    (-3.0, +1.0, -1),  # opposite
    (+1.0, -3.0, -1),  # m and g oppose, c and g agree
    (+2.0, 0.0, +1),  # no gradient
    (+2.0, -0.0, +1),
    (-2.0, -0.0, -1),
    (+1.0, -1.0, 0),  # c is zero
    (-1.0, +1.0, 0),
    (0.0, 0.0, 0),
    (-0.0, -0.0, 0),
    (1e-45, 1e-45, 0),  # halves of the smallest float, 2^-150, round to even, which is 0
    (+1.0, NAN, None),
    (-1.0, INF, None),
    (+1.0, -INF, None),
]


@pytest.mark.parametrize("mode", ["none", "mask", "gradient"])
def test_what_each_mode_does_with_signs(mode: str) -> None:
    """By hand: "mask" stops elements whose c and g do not share a non-zero sign, "gradient" turns opposite ones."""
    m, g = (torch.tensor([case[j] for case in CASES]) for j in (0, 1))
    moves = []
    for _, grad, sign in CASES:
        towards = None if sign is None else (grad > 0) - (grad < 0)
        if sign is None or towards is None:
            moves.append(0)  # skipped
        elif mode == "mask":
            moves.append(sign if sign == towards else 0)
        elif mode == "gradient":
            moves.append(towards if sign * towards < 0 else sign)
        else:
            moves.append(sign)
    param = torch.full(m.shape, 4.0)
    plan = Plan(torch.float32, torch.float32, FLOAT32, caution=mode)
    slot = GradSlot(param, g, {"exp_avg": m.clone()}, 0)
    counts = calls.aligned(plan, [slot], HYPER, scalars([0.5], [0.75]))
    assert counts.tolist() == [sum(s is not None and s * ((v > 0) - (v < 0)) > 0 for _, v, s in CASES)]
    assert counts.dtype == torch.int64
    assert step_one(plan, slot, HYPER, scalars([0.5], [0.75])) == 3
    decayed = [4.0 if case[2] is None else 3.0 for case in CASES]  # decay applies to all but the skipped
    assert param.tolist() == [p - 0.5 * u for p, u in zip(decayed, moves, strict=True)]


def test_signs_not_products_decide() -> None:
    """c*g underflows to zero for gradients of 2^-100, and they are aligned all the same."""
    grad = torch.full((5,), -(2.0**-100))
    param = torch.zeros(5)
    plan = Plan(torch.float32, torch.float32, FLOAT32, caution="mask")
    slot = GradSlot(param, grad, {"exp_avg": torch.zeros(5)}, 0)
    assert calls.aligned(plan, [slot], HYPER, scalars([1.0])).tolist() == [5]
    step_one(plan, slot, HYPER, scalars([1.0]))
    assert param.tolist() == [1.0] * 5


@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("format", [FLOAT32, Format.of(8, block_size=32), Format.of(4, block_size=32)])
def test_counting_and_stepping_agree_over_slots(nonfinite: str, format: Format) -> None:
    """``aligned`` of several slots, with their own gradient scales, counts what the model counts and writes nothing."""
    generator = torch.Generator().manual_seed(1)
    plan = Plan(torch.float32, torch.float32, format, caution="mask", nonfinite=nonfinite)
    slots, expected = [], []
    for index, shape in enumerate([(40,), (3, 33), (0, 40), (2, 4, 20)]):
        param, grad = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        grad.view(-1)[::9], grad.view(-1)[1::9] = NAN, 0.0
        state = new_state(plan, shape)
        state |= backend.encode(format, torch.randn(shape, generator=generator) * 0.1)
        m = backend.decode(format, state, shape).numpy().astype(np.float32)
        scale = np.float32([1.0, -1.0, 0.3, -2.5][index])
        expected.append(
            int(lion(param.numpy(), m, grad.numpy() * scale, 1.0, 0.0, BETAS, "mask", nonfinite).aligned.sum())
        )
        slots.append(GradSlot(param, grad, state, index))
    before = [[t.clone() for t in (slot.param, slot.grad, *slot.state.values())] for slot in slots]
    numbers = scalars([1.0] * 4, grad_scale=[1.0, -1.0, 0.3, -2.5])
    counts = calls.aligned(plan, slots, HYPER, numbers)
    assert counts.dtype == torch.int64
    assert counts.tolist() == expected
    assert min(expected[0], expected[1], expected[3]) > 0
    for slot, saved in zip(slots, before, strict=True):
        assert all(same_bits(a, b) for a, b in zip((slot.param, slot.grad, *slot.state.values()), saved, strict=True))
    assert numbers.skipped.item() == 0


def test_a_cautious_step_is_the_models() -> None:
    """mask and gradient on random elements with decay: p' and m' as one rounding per operation gives them."""
    rng = np.random.default_rng(3)
    for mode in ("mask", "gradient"):
        p, m, g = (rng.standard_normal(2000).astype(np.float32) for _ in range(3))
        expected = lion(p, m, g, 1e-2, 0.3, (0.9, 0.99), mode)
        param, exp_avg = tensor(p), tensor(m)
        keep = float(np.float32(1) - np.float32(1e-2) * np.float32(0.3))
        plan = Plan(torch.float32, torch.float32, FLOAT32, caution=mode)
        slot = GradSlot(param, tensor(g), {"exp_avg": exp_avg}, 0)
        step_one(plan, slot, Hyper.of((0.9, 0.99)), scalars([1e-2], [keep]))
        assert same_bits(param, tensor(expected.p))
        assert same_bits(exp_avg, tensor(expected.m))
        assert not np.array_equal(expected.p, lion(p, m, g, 1e-2, 0.3).p)
