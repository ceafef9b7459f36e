"""GradScaler on the CPU, for every variant: ``step`` takes the scale and found_inf itself, and must heed both."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from lionbits import Lion

from .family import Variant, assert_same, gradient, snapshot, weights


def _scaled_step(
    optimizer: Lion,
    params: list[nn.Parameter],
    scaler: GradScaler,
    step: int,
    *,
    unscale: bool = False,
    poison: bool = False,
) -> None:
    """One step of a scaled training whose true gradients are those of family.gradient."""
    loss = sum((param.float() * gradient(param, position, step).float()).sum() for position, param in enumerate(params))
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    if poison:
        assert params[0].grad is not None
        params[0].grad[0, 0] = torch.inf
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("unscale", [False, True], ids=["fused", "unscale_"])
@pytest.mark.parametrize("settings", [{}, {"grad_clip": 0.5}, {"percentile_clipping": 5}, {"maximize": True}])
def test_scaling_by_a_power_of_two_changes_nothing(variant: Variant, unscale: bool, settings: dict[str, float]) -> None:
    """With a scale that is a power of two, scaled training is unscaled training bit for bit, clipping included."""
    params, plain_params = weights(), weights()
    optimizer, plain = variant(params, **settings), variant(plain_params, **settings)
    scaler = GradScaler("cpu", init_scale=2.0**16)
    for step in (1, 2, 3):
        _scaled_step(optimizer, params, scaler, step, unscale=unscale)
        for position, param in enumerate(plain_params):
            param.grad = gradient(param, position, step)
        plain.step()
    assert_same(snapshot(optimizer)["params"], snapshot(plain)["params"])
    assert_same(snapshot(optimizer)["state"], snapshot(plain)["state"])


def test_unscaling_inside_the_step_equals_unscale(variant: Variant) -> None:
    """With any scale, dividing inside the step gives the bits that ``scaler.unscale_`` before it gives.

    Without clipping: inside the step, a clipping factor and the scale are one factor with one rounding.
    """
    results = []
    for unscale in (False, True):
        params = weights()
        optimizer = variant(params, grad_clip=0.0)
        scaler = GradScaler("cpu", init_scale=12345.0)
        for step in (1, 2, 3):
            _scaled_step(optimizer, params, scaler, step, unscale=unscale)
        held = snapshot(optimizer)
        results.append((held["params"], held["state"]))
        grad = params[0].grad
        assert grad is not None
        # Whoever does not call unscale_ keeps scaled gradients: the step itself never writes them.
        assert (grad.abs().max() > 1000) == (not unscale)
    assert_same(results[0], results[1])


@pytest.mark.parametrize("unscale", [False, True], ids=["fused", "unscale_"])
@pytest.mark.parametrize("running", [False, True], ids=["first step", "later step"])
def test_found_inf_skips_the_whole_step(variant: Variant, unscale: bool, running: bool) -> None:
    """One infinite gradient: no parameter moves, no state appears or changes, no step or element is counted."""
    params = weights()
    optimizer = variant(params, percentile_clipping=50, nonfinite="raise")
    scaler = GradScaler("cpu", init_scale=1024.0)
    if running:
        _scaled_step(optimizer, params, scaler, 1, unscale=unscale)
    before = snapshot(optimizer)
    _scaled_step(optimizer, params, scaler, 2, unscale=unscale, poison=True)
    assert_same(snapshot(optimizer), before)
    assert bool(optimizer.state) == running
    assert optimizer.skipped_elements() == 0
    assert scaler.get_scale() == 512.0
    _scaled_step(optimizer, params, scaler, 3, unscale=unscale)
    assert optimizer.state[params[0]]["step"] == 1 + running
    assert not hasattr(optimizer, "found_inf")


def test_clipping_between_unscale_and_step(variant: Variant) -> None:
    """unscale_, clip_grad_norm_, step: the recipe of torch's manual trains as clipping without a scaler does."""
    params, plain_params = weights(), weights()
    optimizer, plain = variant(params), variant(plain_params)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    for position, (param, twin) in enumerate(zip(params, plain_params, strict=True)):
        twin.grad = gradient(twin, position, 1)
        param.grad = twin.grad * 2.0**10
    scaler.scale(torch.zeros(()))  # the scaler makes its scale at first use
    scaler.unscale_(optimizer)
    for some in (params, plain_params):
        nn.utils.clip_grad_norm_(some, 0.5)
    scaler.step(optimizer)
    scaler.update()
    plain.step()
    assert_same(snapshot(optimizer)["params"], snapshot(plain)["params"])
    assert_same(snapshot(optimizer)["state"], snapshot(plain)["state"])


def test_a_disabled_scaler_is_not_there(variant: Variant) -> None:
    """GradScaler(enabled=False) calls ``step`` and nothing else."""
    params, plain_params = weights(), weights()
    optimizer, plain = variant(params), variant(plain_params)
    _scaled_step(optimizer, params, GradScaler("cpu", enabled=False), 1)
    _scaled_step(plain, plain_params, GradScaler("cpu", init_scale=1.0), 1)
    assert_same(snapshot(optimizer)["params"], snapshot(plain)["params"])
    assert optimizer.state[params[0]]["step"] == 1


def test_bfloat16_parameters_under_a_scaler(variant: Variant) -> None:
    """bfloat16 gradients are scaled and unscaled without a rounding of their own."""
    params, plain_params = weights(torch.bfloat16), weights(torch.bfloat16)
    optimizer, plain = variant(params), variant(plain_params)
    _scaled_step(optimizer, params, GradScaler("cpu", init_scale=2.0**12), 1)
    for position, param in enumerate(plain_params):
        param.grad = gradient(param, position, 1)
    plain.step()
    assert_same(snapshot(optimizer)["state"], snapshot(plain)["state"])
    assert_same(snapshot(optimizer)["params"], snapshot(plain)["params"])
