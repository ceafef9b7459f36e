"""Gradient norms and what they clip: exact sums, a window of 100, the q-th smallest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch

from lionbits_reference import clipping

from .oracle import FLT_MAX, round32


def exact_norm(values: list[float]) -> float:
    """sqrt of the exact sum of squares, rounded to binary32 once; by integer square root."""
    total = sum((Fraction(v) ** 2 for v in values), Fraction(0))
    scaled = total * 4**400  # an integer: no square has bits below 2^-298
    root = math.isqrt(int(scaled))
    sticky = 0 if root * root == scaled else Fraction(1, 2)
    return round32((root + sticky) / Fraction(2) ** 400)


@pytest.fixture
def four_threads() -> Iterator[None]:
    """Let torch use four threads for one test."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 31, 1000, 65535, 65536, 65537, 200_001])
def test_the_norm_is_that_of_exact_arithmetic(size: int) -> None:
    """Squares summed in binary64 and rounded to float32 once: no bit away from the exact norm, at any length."""
    rng = np.random.default_rng(size)
    grad = (rng.standard_normal(size) * 2.0 ** rng.integers(-8, 8, size)).astype(np.float32)
    norm = clipping.gradient_norm(torch.from_numpy(grad), "skip")
    assert norm.dtype == torch.float32
    assert norm.shape == ()
    assert norm.item() == exact_norm(grad.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_type_strides_and_range(dtype: torch.dtype) -> None:
    """Half types, transposed tensors, squares beyond float32 on both sides: the same exact norm."""
    grad = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    for scale in (1.0, 2.0**-120, 2.0**100) if dtype != torch.float16 else (1.0, 2.0**-10):
        scaled = grad * scale
        expected = exact_norm(scaled.flatten().tolist())
        assert expected > 0
        assert clipping.gradient_norm(scaled, "skip").item() == expected
        assert clipping.gradient_norm(scaled.t(), "skip").item() == expected


def test_the_root_is_correctly_rounded() -> None:
    """Next to the middle between two float32 numbers its last bit decides, and torch's own is not always right."""
    generator = torch.Generator().manual_seed(0)
    upwards = torch.full((), torch.inf)
    for exponent in (-120, -60, 0, 1, 30, 120):
        low = (torch.rand(5000, generator=generator) + 1) * 2.0**exponent
        middle = (low.double() + torch.nextafter(low, upwards).double()) / 2
        half = middle * (torch.nextafter(middle, upwards.double()) - middle)
        squares = torch.cat((middle * middle, middle * middle + half, middle * middle - half))
        wanted = torch.tensor([math.sqrt(x) for x in squares.tolist()], dtype=torch.float64)
        assert torch.equal(clipping.norm(squares), wanted.float())
    edges = torch.tensor([0.0, 1.0, torch.inf], dtype=torch.float64)
    assert torch.equal(clipping.norm(edges), edges.float())
    assert clipping.norm(torch.full((), torch.nan, dtype=torch.float64)).isnan()


def test_a_norm_beyond_float32_is_infinite() -> None:
    """Rounded to float32 once: two elements of FLT_MAX have no finite norm."""
    assert clipping.gradient_norm(torch.tensor([FLT_MAX, FLT_MAX]), "skip").item() == math.inf
    assert clipping.gradient_norm(torch.tensor([FLT_MAX, 1.0]), "skip").item() == FLT_MAX


def test_elements_that_are_skipped_do_not_count() -> None:
    """With "skip" the norm is that of the finite elements: a NaN does not clip its neighbours. Else it shows."""
    grad = torch.tensor([3.0, math.nan, math.inf, -4.0, -math.inf])
    assert clipping.gradient_norm(grad, "skip").item() == 5.0
    assert math.isnan(clipping.gradient_norm(grad, "propagate").item())
    assert clipping.gradient_norm(grad[[0, 2, 3]], "propagate").item() == math.inf
    assert clipping.gradient_norm(grad[[1, 2]], "skip").item() == 0.0


def test_many_small_squares_are_not_lost() -> None:
    """A norm at a tie of float32, 16777225, and 60,000 squares too small to change the sum one by one: up it goes."""
    k = 3355445  # (3k)^2 + (4k)^2 = (5k)^2
    grad = torch.tensor([3.0 * k, 4.0 * k] + [0.05] * 60_000)
    assert clipping.gradient_norm(grad[:2], "skip").item() == 16777224.0
    assert clipping.gradient_norm(grad, "skip").item() == exact_norm(grad.tolist()) == 16777226.0
    summed = 0.0
    for v in grad.tolist():
        summed += v * v
    assert np.float32(math.sqrt(summed)) == 16777224.0


def halved(x: npt.NDArray[np.float64]) -> np.float64:
    """x filled up with zeros to a power of two, and x[:n/2] + x[n/2:] down to one number."""
    x = np.concatenate((x, np.zeros((1 << max(len(x) - 1, 0).bit_length()) - len(x))))
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return np.float64(x[0])


def test_the_order_of_the_sum_is_fixed() -> None:
    """Squares in runs of 65,536, each halved down to one number, then these: where other orders give other norms."""
    k, others = 3355445, [0, 0]
    for seed in range(120):
        rng = np.random.default_rng(seed)
        size = int(rng.choice([50, 100, 700, 70_000]))
        few, two = (rng.permutation(size)[:count] for count in (rng.integers(20, 50), 2))
        grad = np.zeros(size, np.float32)
        grad[few] = rng.uniform(0.05, 0.09, len(few))  # squares that are lost in the two large ones, or not
        grad[two] = 3 * k, 4 * k
        squares = grad.astype(np.float64) ** 2
        runs = [halved(squares[first : first + 65536]) for first in range(0, size, 65536)]
        expected = np.float32(np.sqrt(halved(np.array(runs))))
        assert clipping.gradient_norm(torch.from_numpy(grad), "skip").item() == expected
        others[0] += bool(np.float32(np.sqrt(squares.sum())) != expected)
        others[1] += bool(np.float32(np.sqrt(squares.cumsum()[-1])) != expected)
    assert min(others) > 5


@pytest.mark.usefixtures("four_threads")
def test_the_norm_does_not_depend_on_threads() -> None:
    """One thread and four give the same bits, for sums that a different order would round differently."""
    generator = torch.Generator().manual_seed(1)
    for size in (5, 70_000, 1_000_003):
        grad = torch.randn(size, generator=generator) * torch.logspace(-6, 6, size)
        many = clipping.gradient_norm(grad, "skip")
        torch.set_num_threads(1)
        one = clipping.gradient_norm(grad, "skip")
        torch.set_num_threads(4)
        assert torch.equal(many, one)


def test_norms_of_many_tensors_are_those_of_each() -> None:
    """Whatever else is in the call: sizes around runs and portions, empty and scalar tensors, any strides and order."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(), (0,), (1,), (3,), (31,), (32,), (33,), (40, 30), (65_535,), (65_536,), (65_537,), (5, 0), (600, 512)]
    shapes += [((1 << 18) - 1,), (1 << 18,), ((1 << 18) + 1,), *[(7,)] * 40, (3, 1 << 17), (2,), (0,)]
    grads = [torch.randn(shape, generator=generator) for shape in shapes]
    grads += [torch.randn(40, 50, generator=generator).t(), torch.randn(1, 60, generator=generator).expand(50, 60)]
    for shift in (0, 5, 11, 17):
        turned = grads[shift:] + grads[:shift]
        found = clipping.sums_of_squares(turned, "skip")
        for grad, total in zip(turned, found, strict=True):
            squares = grad.flatten().numpy().astype(np.float64) ** 2
            runs = [halved(squares[first : first + 65536]) for first in range(0, max(len(squares), 1), 65536)]
            assert total.item() == halved(np.array(runs))
            assert torch.equal(clipping.gradient_norm(grad, "skip"), clipping.norm(total))


def remembered(history: torch.Tensor, norm: float, step: int) -> torch.Tensor:
    """One history with a norm, beside others that must not matter."""
    others = torch.full((3, clipping.HISTORY), 7.0)
    others[1] = history
    norms = torch.tensor([1.0, norm, 0.0])
    return clipping.remembered(others, norms, torch.tensor([9, step, 3]))[1]


def percentile_limit(history: torch.Tensor, q: int) -> torch.Tensor:
    """The limit of one history, beside another's."""
    both = torch.stack([history.flip(0) + 1.0, history])
    return clipping.percentile_limits(both, torch.tensor([1, q]))[1]


@pytest.mark.parametrize("q", [1, 5, 50, 99, 100])
def test_the_limit_is_the_qth_smallest_of_the_last_hundred(q: int) -> None:
    """Over 350 steps: the first norm fills the window, each step replaces its oldest, the present one is included."""
    rng = np.random.default_rng(q)
    history = torch.zeros(clipping.HISTORY)
    window: list[float] = []
    for step in range(1, 351):
        norm = float(np.float32(rng.lognormal(0, 1.5)))
        window = [norm] * 100 if not window else [*window[1:], norm]
        history = remembered(history, norm, step)
        limit = percentile_limit(history, q)
        assert limit.item() == sorted(window)[q - 1]
        assert sorted(history.tolist()) == sorted(window)
        factor = clipping.clip_factor(torch.tensor(norm), limit)
        assert factor.item() == (float(np.float32(limit.item()) / np.float32(norm)) if norm > limit.item() else 1.0)


def test_zero_norms_before_the_first_real_one_are_no_history() -> None:
    """LoRA's A has a zero gradient at first: the window stays empty until a norm is not zero, which then fills it."""
    history = torch.zeros(clipping.HISTORY)
    for step in range(1, 4):
        history = remembered(history, 0.0, step)
        limit = percentile_limit(history, 5)
        assert clipping.clip_factor(torch.tensor(0.0), limit).item() == 1.0
    history = remembered(history, 2.0, 4)
    assert history.tolist() == [2.0] * 100
    assert clipping.clip_factor(torch.tensor(2.0), percentile_limit(history, 5)).item() == 1.0
    for step in range(5, 9):
        history = remembered(history, 0.0, step)  # from here on a zero is a norm like any other
    assert sorted(history.tolist()) == [0.0] * 4 + [2.0] * 96
    assert percentile_limit(history, 4).item() == 0.0
    assert percentile_limit(history, 5).item() == 2.0


@pytest.mark.parametrize(("norm", "limit"), [(3.0, 1.0), (1.0, 1.0), (0.5, 1.0), (0.0, 0.0), (7.0, 0.0), (1e38, 1e-38)])
def test_the_factor_is_limit_over_norm_where_the_norm_exceeds_it(norm: float, limit: float) -> None:
    """One float32 division, gradual underflow included, and exactly 1 where nothing is to be clipped."""
    factor = clipping.clip_factor(torch.tensor(norm), torch.tensor(limit))
    n, c = (Fraction(float(np.float32(v))) for v in (norm, limit))
    assert factor.dtype == torch.float32
    assert factor.item() == (round32(c / n) if n > c else 1.0)
