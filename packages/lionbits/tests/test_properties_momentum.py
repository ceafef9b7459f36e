"""Properties of the momentum: it turns, it has no scale and no preferred sign, and zero stays without a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lionbits import Lion

pytestmark = pytest.mark.filterwarnings("ignore:optim_bits=2:UserWarning")

EVERY_WIDTH = pytest.mark.parametrize("bits", [32, 8, 4, 2])


def lion(param: torch.Tensor, bits: int, **options: Any) -> Lion:
    """A Lion of these bits in blocks of 64 whatever the parameter's size, lr 2^-7."""
    return Lion([param], **{"lr": 2.0**-7, "optim_bits": bits, "min_8bit_size": 1, "block_size": 64} | options)


def turning_steps(bits: int, limit: int, **options: Any) -> torch.Tensor:
    """After 70 steps with a gradient of +1, steps with -0.2 before one moves an element up; ``limit`` if none does.

    The first element of each block has a gradient of +1 throughout, and so keeps the block's absmax high.
    """
    param = torch.nn.Parameter(torch.zeros(16, 256))
    optimizer = Lion([param], lr=1.0, optim_bits=bits, **options)
    block = optimizer.param_groups[0]["block_size"] or 256
    turned = torch.full(param.shape, limit)
    for step in range(70 + limit):
        param.grad = torch.full(param.shape, 1.0 if step < 70 else -0.2)
        param.grad[:, ::block] = 1.0
        before = param.detach().clone()
        optimizer.step()
        if step < 70:
            assert torch.equal(param.detach(), before - 1)
            continue
        up = param.detach() > before
        turned = torch.where(up & (turned == limit), step - 70, turned)
    assert (turned[:, ::block] == limit).all()
    follow = torch.ones(256, dtype=torch.bool)
    follow[::block] = False
    return turned[:, follow]


def test_momentum_does_not_stick() -> None:
    """After +1 for 70 steps and -0.2 for good, elements turn about when those of 32 bits do, which is after 115 steps.

    On average over elements within 1.2 times that at 8 bits and 2 times at 4 bits, nor much earlier; each of them does.
    The noise is fixed by the seed, so the averages are too.
    """
    assert (turning_steps(32, 130) == 115).all()
    for bits, rounding, factor in (
        (8, "dithered", 1.2),
        (8, "stochastic", 1.2),
        (4, "dithered", 2),
        (4, "stochastic", 2),
    ):
        turned = turning_steps(bits, 300 if rounding == "dithered" else 600, rounding=rounding).double()
        assert 115 / factor < turned.mean() < 115 * factor, (bits, rounding)
        assert turned.max() < (300 if rounding == "dithered" else 600)


def test_nearest_rounding_sticks() -> None:
    """Why unbiased rounding is the default: rounded to nearest, no element turns in 1,000 steps, at 8 or at 4 bits."""
    for bits in (8, 4):
        assert (turning_steps(bits, 1000, rounding="nearest") == 1000).all()


def gradients(count: int, shape: tuple[int, ...], seed: int) -> list[torch.Tensor]:
    """Gradients between 2^-7 and 2^3 in magnitude, some of them zero: far from under- and overflow when scaled."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(count):
        size = torch.exp2(torch.rand(shape, generator=generator) * 10 - 7)
        sign = torch.randint(-1, 2, shape, generator=generator)
        drawn.append(size * sign)
    return drawn


@pytest.mark.parametrize("bits", [32, 8, 4, 2])
@pytest.mark.parametrize("cautious", [None, "mask"])
def test_gradients_have_no_scale(bits: int, cautious: str | None) -> None:
    """Gradients times 2^k for k in -80..80 give the same parameters and codes bit for bit, and scales times 2^k."""
    start = torch.randn(3, 70, generator=torch.Generator().manual_seed(1))
    grads = gradients(8, (3, 70), 2)

    def trained(k: int) -> tuple[torch.Tensor, dict[str, Any]]:
        param = torch.nn.Parameter(start.clone())
        optimizer = lion(param, bits, cautious=cautious, weight_decay=0.1)
        for grad in grads:
            param.grad = grad * 2.0**k
            optimizer.step()
        return param.detach(), optimizer.state[param]

    expected, state = trained(0)
    assert not torch.equal(expected, start)
    for k in range(-80, 81) if cautious is None else (-80, -33, 1, 80):
        param, scaled = trained(k)
        assert torch.equal(param.view(torch.int32), expected.view(torch.int32)), k
        if bits == 32:
            assert torch.equal(scaled["exp_avg"], state["exp_avg"] * 2.0**k), k
        else:
            assert torch.equal(scaled["exp_avg_codes"], state["exp_avg_codes"]), k
            assert torch.equal(scaled["exp_avg_scale"], state["exp_avg_scale"] * 2.0**k), k


@EVERY_WIDTH
@pytest.mark.parametrize("rounding", ["dithered", "stochastic", "nearest"])
def test_opposite_gradients_give_mirror_images(bits: int, rounding: str) -> None:
    """Negated starts and gradients give negated parameters and momenta; with constant -1 and +1 they part for good."""
    constant = [torch.full((2, 70), 1.0)] * 60
    for grads in (constant, gradients(60, (2, 70), 3)):
        ends = []
        for sign in (1.0, -1.0):
            param = torch.nn.Parameter(sign * torch.ones(2, 70))
            optimizer = lion(param, bits, rounding=rounding, weight_decay=0.5, cautious="mask")
            for grad in grads:
                param.grad = sign * grad
                optimizer.step()
            ends.append((param.detach(), optimizer.momentum(param)))
        (there, m_there), (here, m_here) = ends
        assert torch.equal(there, -here)
        assert torch.equal(m_there, -m_here)
        if grads is constant:
            value = torch.tensor(1.0)
            for _ in grads:
                value = value * (1 - torch.tensor(2.0**-7) * 0.5) - 2.0**-7
            assert torch.equal(there, value.expand(2, 70))
            assert (m_there > 0).all()


@EVERY_WIDTH
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_row_without_gradient_never_moves(bits: int, zero: float) -> None:
    """An embedding row that no token touches keeps its bits over 1,000 steps, -0.0 and subnormals among them."""
    start = torch.randn(4, 64, generator=torch.Generator().manual_seed(4))
    start[2, :4] = torch.tensor([-0.0, 0.0, 1e-45, -1e-45])
    param = torch.nn.Parameter(start.clone())
    optimizer = lion(param, bits)
    noise = torch.randn(50, 4, 64, generator=torch.Generator().manual_seed(5))
    noise[:, 2] = zero
    noise[:, 1, 7] = zero  # and one element in the midst of a row that is touched
    for step in range(1000):
        param.grad = noise[step % 50]
        optimizer.step()
    assert torch.equal(param.detach()[2].view(torch.int32), start[2].view(torch.int32))
    assert param[1, 7].item() == start[1, 7].item()
    assert not optimizer.momentum(param)[2].any()
    assert (param.detach()[[0, 3]] != start[[0, 3]]).float().mean() > 0.9


@EVERY_WIDTH
@pytest.mark.parametrize("param_rounding", ["nearest", "dithered", "stochastic", "compensated"])
def test_a_bfloat16_row_without_gradient_never_moves(bits: int, param_rounding: str) -> None:
    """Nor does rounding move a bfloat16 parameter that nothing else moves."""
    start = torch.randn(3, 64, generator=torch.Generator().manual_seed(6)).bfloat16()
    start[1, 0] = -0.0
    param = torch.nn.Parameter(start.clone())
    optimizer = lion(param, bits, param_rounding=param_rounding, cautious="gradient")
    for step in range(100):
        param.grad = torch.ones_like(param) * (-1) ** (step // 7)
        param.grad[1] = -0.0
        optimizer.step()
    assert torch.equal(param.detach()[1].view(torch.int16), start[1].view(torch.int16))
    assert (param.detach()[[0, 2]] != start[[0, 2]]).any()
