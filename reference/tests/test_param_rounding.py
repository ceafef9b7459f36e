"""How p' is stored in a bfloat16 parameter: unbiased, or with the dropped bits kept beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lionbits_reference import rounding
from lionbits_reference.spec import FLOAT32, Hyper, Plan

from .calls import GradSlot, new_state, scalars, step_one
from .oracle import Floats, Ints, lion, one_noise, same_bits, tensor

BF16 = torch.bfloat16
LR = 2.0**-10
SEED, INDEX = 77, 3


def every_bfloat16() -> torch.Tensor:
    """All 65,536 bfloat16 patterns, one row."""
    return torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(BF16)


def bits_of_all(p: Floats) -> Ints:
    """binary32 bits as non-negative int64."""
    return p.view(np.uint32).astype(np.int64)


def noise_of(mode: str, step: int, count: int) -> Ints:
    """The noise of purpose 1 of the first elements of the parameter."""
    return np.array([one_noise(mode, SEED, INDEX, 1, step, i) for i in range(count)], dtype=np.int64)


def stored(bits: Ints) -> torch.Tensor:
    """bfloat16 from the upper 16 bits given as integers."""
    return tensor(bits.astype(np.uint16).view(np.int16)).view(BF16)


def after_steps(
    plan: Plan, param: torch.Tensor, grads: list[torch.Tensor], lr: float, keep: float, **state: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Take a step with each gradient, ``param`` in place; the state comes back."""
    held = new_state(plan, param.shape) | state
    for step, grad in enumerate(grads, 1):
        step_one(
            plan, GradSlot(param, grad, held, INDEX), Hyper.of((0.9, 0.99), SEED), scalars([lr], [keep], step=[step])
        )
    return held


@pytest.mark.parametrize("mode", ["dithered", "stochastic"])
def test_unbiased_rounding_adds_the_lane_and_truncates(mode: str) -> None:
    """From every bfloat16 start, stored bits are (bits(p') + noise) >> 16 with noise of purpose 1; NaN stays NaN."""
    param = every_bfloat16()
    start = param.float().numpy()
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(65536, generator=generator)
    with np.errstate(all="ignore"):
        expected = lion(start, np.zeros_like(start), grad.numpy(), LR, 0.5).p
    after_steps(Plan(BF16, torch.float32, FLOAT32, param_rounding=mode), param, [grad], LR, 1 - LR * 0.5)
    bits = stored((bits_of_all(expected) + noise_of(mode, 1, 65536)) >> 16)
    nan = torch.from_numpy(np.isnan(expected))
    assert torch.equal(param.isnan(), nan)
    assert same_bits(param[~nan], bits[~nan])
    assert torch.isinf(param).sum() == 2


@pytest.mark.parametrize("lane_value", [0, 1, 0x8000, 0xFFFF])
def test_unbiased_rounding_of_any_float32(lane_value: int) -> None:
    """Every upper half with several lower ones: (bits + noise) >> 16, up to infinity; NaN of every NaN."""
    low = np.array([0, 1, 0x7FFF, 0x8000, 0xFFFF])
    bits = ((np.arange(65536, dtype=np.int64)[:, None] << 16) + low).ravel()
    p = bits.astype(np.uint32).view(np.float32)
    got = rounding.round_unbiased(tensor(p), torch.full(p.shape, lane_value, dtype=torch.int32))
    real = ~np.isnan(p)
    assert got[tensor(~real)].isnan().all()
    assert same_bits(got[tensor(real)], stored((bits[real] + lane_value) >> 16))


@pytest.mark.parametrize("mode", ["nearest", "dithered", "stochastic", "compensated"])
def test_a_value_that_does_not_move_keeps_its_bits(mode: str) -> None:
    """Zero gradient, no decay: every bfloat16 pattern stays, infinities, subnormals and -0.0 too; a NaN stays NaN."""
    for master_bits in (32, 24) if mode == "compensated" else (32,):
        plan = Plan(BF16, BF16, FLOAT32, param_rounding=mode, master_bits=master_bits)
        param = every_bfloat16()
        held = after_steps(plan, param, [torch.zeros(65536, dtype=BF16)] * 3, 0.1, 1.0)
        assert same_bits(param, every_bfloat16())
        if mode == "compensated":
            assert not held["param_residual"].any()


def test_every_float32_is_split_and_put_together_again() -> None:
    """master 32: q = (bits + 0x8000) >> 16 and rest = bits - (q << 16) rebuild every float32 bit for bit."""
    rng = np.random.default_rng(1)
    low = np.concatenate((np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]), rng.integers(0, 65536, 10)))
    bits = ((np.arange(65536, dtype=np.int64)[:, None] << 16) + low).ravel()
    p = bits.astype(np.uint32).view(np.float32)
    kept, residual = rounding.split_master(tensor(p), torch.int16, rounding.NEAREST)
    assert residual.dtype == torch.int16
    assert same_bits(rounding.load_param(kept, residual), tensor(p))
    real = ~np.isnan(p)
    assert same_bits(kept[tensor(real)], stored((bits[real] + 0x8000) >> 16))
    assert torch.equal(residual[tensor(real)].long(), tensor(bits[real] - ((bits[real] + 0x8000) >> 16 << 16)))


def test_24_bit_masters_round_the_low_byte_with_the_lane() -> None:
    """master 24: bits first become (bits + (noise >> 8)) & ~0xFF; the rest fits an int8 and rebuilds exactly those."""
    rng = np.random.default_rng(2)
    low = np.concatenate((np.array([0, 1, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF]), rng.integers(0, 65536, 5)))
    bits = ((np.arange(65536, dtype=np.int64)[:, None] << 16) + low).ravel()
    noise = rng.integers(0, 65536, bits.shape)
    noise[::3], noise[1::3] = 0, 0xFFFF
    p = bits.astype(np.uint32).view(np.float32)
    kept, residual = rounding.split_master(tensor(p), torch.int8, tensor(noise.astype(np.int32)))
    assert residual.dtype == torch.int8
    real = tensor(~np.isnan(p))
    rounded = (bits + (noise >> 8)) & ~0xFF
    rebuilt = tensor(rounded.astype(np.uint32).view(np.float32))
    assert same_bits(rounding.load_param(kept, residual)[real], rebuilt[real])
    assert same_bits(kept[real], stored((rounded + 0x8000) >> 16)[real])
    assert kept[~real].isnan().all()


@pytest.mark.parametrize("master_bits", [32, 24])
def test_a_compensated_step_from_every_bfloat16(master_bits: int) -> None:
    """p' is computed on the master (all patterns, every seventh with a rest), split by the noise of purpose 1."""
    param = every_bfloat16()
    residual_dtype = torch.int16 if master_bits == 32 else torch.int8
    shift = 0 if master_bits == 32 else 8
    residual = np.zeros(65536, dtype=np.int64)
    residual[::7] = np.random.default_rng(3).integers(-(2 ** (15 - shift)), 2 ** (15 - shift), residual[::7].shape)
    upper = param.view(torch.int16).numpy().astype(np.int64)
    master = ((upper << 16) + (residual << shift)).astype(np.int32).view(np.float32)
    grad = torch.randn(65536, generator=torch.Generator().manual_seed(4))
    with np.errstate(all="ignore"):
        p = lion(master, np.zeros_like(master), grad.numpy(), LR, 0.5).p
    bits = bits_of_all(p)
    if master_bits == 24:
        bits = (bits + (noise_of("dithered", 1, 65536) >> 8)) & ~0xFF
    plan = Plan(BF16, torch.float32, FLOAT32, param_rounding="compensated", master_bits=master_bits)
    held = after_steps(plan, param, [grad], LR, 1 - LR * 0.5, param_residual=tensor(residual).to(residual_dtype))
    real = ~np.isnan(p)
    expected = tensor(bits.astype(np.uint32).view(np.float32))
    keep = tensor(real)
    assert torch.equal(param.isnan(), ~keep)
    assert same_bits(param[keep], stored((bits[real] + 0x8000) >> 16))
    assert same_bits(rounding.load_param(param, held["param_residual"])[keep], expected[keep])


def test_the_master_is_float32_training() -> None:
    """500 steps: master_bits=32 rebuilds, after each, the float32 parameter that the same bfloat16 gradients give."""
    generator = torch.Generator().manual_seed(5)
    param = torch.randn(400, generator=generator).to(BF16)
    float_param = param.float()
    lr, keep = 1e-3, float(np.float32(1) - np.float32(1e-3) * np.float32(0.1))
    grads = [torch.randn(400, generator=generator).to(BF16) for _ in range(500)]
    compensated = Plan(BF16, BF16, FLOAT32, param_rounding="compensated")
    plain = Plan(torch.float32, BF16, FLOAT32)
    residual, m16, m32 = torch.zeros(400, dtype=torch.int16), torch.zeros(400), torch.zeros(400)
    hyper = Hyper.of((0.9, 0.99))
    for step, grad in enumerate(grads, 1):
        numbers = scalars([lr], [keep], step=[step])
        step_one(compensated, GradSlot(param, grad, {"param_residual": residual, "exp_avg": m16}, 0), hyper, numbers)
        step_one(plain, GradSlot(float_param, grad, {"exp_avg": m32}, 0), hyper, numbers)
        assert same_bits(rounding.load_param(param, residual), float_param)
    assert same_bits(m16, m32)
    assert not torch.equal(param.float(), float_param)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("mode", ["nearest", "dithered", "stochastic"])
def test_a_small_step_moves_a_bfloat16_on_average(mode: str, decay: float) -> None:
    """1.0 at lr 1e-3 stands still when rounded to nearest (half a step down is 1/512); unbiased, its mean moves by lr.

    After 100 steps the mean is within 6 sigma of float32 training: each rounding has a deviation of at most 2^-9, half
    a step, so the mean of 4096 elements has one of at most 2^-9 * sqrt(100 / 4096) = 3.1e-4. Seeds are fixed.
    """
    count, lr = 4096, 1e-3
    keep = float(np.float32(1) - np.float32(lr) * np.float32(decay))
    plan = Plan(BF16, BF16, FLOAT32, param_rounding=mode)
    param = torch.ones(count, dtype=BF16)
    after_steps(plan, param, [torch.ones(count, dtype=BF16)] * 100, lr, keep)
    if mode == "nearest":
        assert same_bits(param, torch.ones(count, dtype=BF16))
        return
    target = 1.0
    for _ in range(100):
        target = target * keep - lr
    assert abs(param.double().mean().item() - target) < 6 * 3.1e-4
    assert abs(target - 1.0) > 0.099


def test_unbiased_decay_alone_moves_a_bfloat16() -> None:
    """With a zero gradient and lr*wd = 1e-4 a parameter of 1.0 shrinks on average, and stands still if nearest."""
    for mode, moves in (("nearest", False), ("dithered", True), ("stochastic", True)):
        param = torch.ones(4096, dtype=BF16)
        plan = Plan(BF16, BF16, FLOAT32, param_rounding=mode)
        after_steps(plan, param, [torch.zeros(4096, dtype=BF16)] * 100, 1e-3, 1 - 1e-4)
        shrunk = (1 - 1e-4) ** 100
        mean = param.double().mean().item()
        assert abs(mean - shrunk) < 6 * 3.1e-4 if moves else mean == 1.0  # the bound of the test above


def test_float16_rounds_to_nearest_even() -> None:
    """A float16 parameter is p' rounded once; other roundings are for bfloat16 and are refused."""
    generator = torch.Generator().manual_seed(6)
    param = torch.randn(999, generator=generator).half()
    start, grad = param.float().numpy().copy(), torch.randn(999, generator=generator).half()
    after_steps(Plan(torch.float16, torch.float16, FLOAT32), param, [grad], 1e-4, 1.0)
    expected = lion(start, np.zeros_like(start), grad.float().numpy(), 1e-4).p.astype(np.float16)
    assert same_bits(param, tensor(expected))
    for mode in ("dithered", "stochastic", "compensated"):
        with pytest.raises(ValueError, match="param_rounding"):
            Plan(torch.float16, torch.float16, FLOAT32, param_rounding=mode)
