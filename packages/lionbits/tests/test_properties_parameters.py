"""Properties of the parameter: what bfloat16 drops is kept or made up for on average, and clipping only scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lionbits import Lion

from .family import free_gradients
from .test_properties_model import Model, norm_of

pytestmark = pytest.mark.filterwarnings("ignore:optim_bits=2:UserWarning")


def rebuilt(param: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """The master: bfloat16 bits times 2^16, plus the rest in its units."""
    upper = param.detach().view(torch.int16).long() << 16
    return (upper + (rest.long() << (0 if rest.dtype == torch.int16 else 8))).to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("cautious", [None, "mask"])
def test_compensated_training_is_float32_training(bits: int, cautious: str | None) -> None:
    """500 steps with master_bits=32 and the same bfloat16 gradients: master and momentum are a float32 twin's."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(5, 67, generator=generator).bfloat16()
    param, twin = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    options: dict[str, Any] = {"optim_bits": bits, "min_8bit_size": 1, "cautious": cautious, "weight_decay": 0.1}
    ours = Lion([param], lr=1e-3, param_rounding="compensated", **options)
    theirs = Lion([twin], lr=1e-3, **options)
    target = torch.randn(5, 67, generator=generator)
    for _ in range(500):
        grad = (param.detach().float() - target + torch.randn(5, 67, generator=generator)).bfloat16()
        param.grad, twin.grad = grad, grad.float()
        ours.step()
        theirs.step()
        assert torch.equal(rebuilt(param, ours.state[param]["param_residual"]), twin.detach())
    assert torch.equal(ours.momentum(param), theirs.momentum(twin))
    assert not torch.equal(param.detach().float(), twin.detach()), "bfloat16 alone would have lost this"


def test_24_bits_stay_beside_32() -> None:
    """master_bits=24: after 500 steps the master's mean is within 6 sigma of float32's, whatever each element drew.

    Below 1 a step rounds to a multiple of 2^-16, unbiased, with a deviation of at most half of that; the mean over 4096
    elements, after 500 steps, has one of at most 2^-17 * sqrt(500 / 4096) = 2.7e-6. The seed is fixed.
    """
    start = torch.rand(64, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    param, twin = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    ours = Lion([param], lr=1e-4, param_rounding="compensated", master_bits=24)
    theirs = Lion([twin], lr=1e-4)
    for _ in range(500):
        param.grad, twin.grad = torch.ones_like(param), torch.ones_like(twin)
        ours.step()
        theirs.step()
    master = rebuilt(param, ours.state[param]["param_residual"])
    difference = (master.double() - twin.detach().double()).mean().abs().item()
    assert difference < 6 * 2.7e-6
    assert not torch.equal(master, twin.detach())


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_one_at_lr_one_thousandth(decay: float) -> None:
    """A bfloat16 parameter of 1.0: stands still under "nearest", loses lr (and decay) a step on average otherwise.

    The bound is 6 sigma of the mean of 4096 elements after 200 roundings of at most 2^-9 each: 6 * 4.4e-4.
    """
    for mode, moves in (("nearest", False), ("dithered", True), ("stochastic", True), ("compensated", True)):
        param = torch.nn.Parameter(torch.ones(64, 64).bfloat16())
        optimizer = Lion([param], lr=1e-3, weight_decay=decay, param_rounding=mode)
        expected = 1.0
        for _ in range(200):
            param.grad = torch.ones_like(param)
            optimizer.step()
            expected = expected * (1 - 1e-3 * decay) - 1e-3
        mean = param.detach().double().mean().item()
        if moves:
            assert abs(mean - expected) < (6 * 4.4e-4 if mode != "compensated" else 2**-9 + 1e-5)
        else:
            assert torch.equal(param.detach(), torch.ones(64, 64).bfloat16())


@pytest.mark.parametrize("q", [1, 5, 50, 99])
@pytest.mark.parametrize("grad_clip", [0.0, 1.5])
def test_clipping_over_a_long_history(q: int, grad_clip: float) -> None:
    """230 steps, three zero gradients first, some elements NaN, two types: all is as in the model."""
    rng = np.random.default_rng(q)
    start = rng.standard_normal(6).astype(np.float32)
    model = Model(start.tolist(), 1, 6, percentile_clipping=q, grad_clip=grad_clip, weight_decay=0.1)
    param = torch.nn.Parameter(torch.from_numpy(start.copy()))
    free_gradients(param)
    optimizer = Lion([param], lr=1e-2, percentile_clipping=q, grad_clip=grad_clip, weight_decay=0.1)
    factors = set()
    for step in range(230):
        size = 0.0 if step < 3 else rng.lognormal(0, 1.5)
        grad = torch.from_numpy((rng.standard_normal(6) * size).astype(np.float32)).bfloat16()
        if step % 10 == 5:
            grad[step % 6] = torch.nan
        param.grad = grad.clone()
        optimizer.step()
        model.step(grad.float().tolist(), 1e-2)
        factors.add(model.grad_scale_used)
        assert param.detach().tolist() == model.p
        assert optimizer.momentum(param).tolist() == model.m
        assert sorted(optimizer.state[param]["grad_norms"].tolist()) == sorted(model.norms)
        assert torch.equal(param.grad.nan_to_num(7.0), grad.nan_to_num(7.0)), "p.grad is not written"
    assert len(factors) > 50 or q == 99
    assert 1.0 in factors


def test_grad_clip_bounds_the_norm_of_each_tensor() -> None:
    """Each tensor's gradient is multiplied by float32(c / norm) where its norm exceeds c, and left alone elsewhere."""
    short, long = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(4))
    optimizer = Lion([short, long], lr=0.1, betas=(0.9, 0.0), grad_clip=2.0)
    short.grad, long.grad = torch.tensor([1.0, 0.5, -0.25, 0.0]), torch.tensor([3.0, -1.0, 7.0, 0.3])
    optimizer.step()
    assert torch.equal(optimizer.momentum(short), short.grad)  # beta2 = 0: m' is g
    factor = torch.tensor(2.0) / torch.tensor(norm_of(long.grad.tolist()))
    assert torch.equal(optimizer.momentum(long), long.grad * factor)


def test_maximize_is_minimize_with_the_gradient_negated() -> None:
    """Bit for bit, clipping and caution included."""
    options: dict[str, Any] = {
        "grad_clip": 1.0,
        "cautious": "mask",
        "optim_bits": 8,
        "min_8bit_size": 1,
        "weight_decay": 0.1,
    }
    generator = torch.Generator().manual_seed(3)
    up, down = (torch.nn.Parameter(torch.ones(3, 40)) for _ in range(2))
    climber, walker = Lion([up], lr=0.01, maximize=True, **options), Lion([down], lr=0.01, **options)
    for _ in range(30):
        up.grad = torch.randn(3, 40, generator=generator)
        down.grad = -up.grad
        climber.step()
        walker.step()
    assert torch.equal(up.detach(), down.detach())
    assert torch.equal(climber.momentum(up), walker.momentum(down))
