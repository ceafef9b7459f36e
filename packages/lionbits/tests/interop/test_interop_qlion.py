"""QLion's state dicts, by its formulas: the original is a file, not a package."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion4bit, Lion32bit, QLion, interop

from ..family import assert_same, weights


class Original:
    """QLion's formulas: sign of the new momentum; int8 codes of seven levels either side, one scale per tensor."""

    def __init__(self, params: list[nn.Parameter], dtype: torch.dtype) -> None:
        self.params, self.momenta = params, [torch.zeros_like(param, dtype=dtype) for param in params]

    def step(self, lr: float, b1: float, b2: float) -> None:
        for param, m in zip(self.params, self.momenta, strict=True):
            assert param.grad is not None
            m.mul_(b2).add_(param.grad * (1 - b2))
            param.data.sub_(lr * (m * b1 + param.grad * (1 - b1)).sign())

    def state_dict(self, **group: Any) -> dict[str, Any]:
        state: dict[int, dict[str, Any]] = {}
        for key, m in enumerate(self.momenta):
            scale = m.abs().max() / 7
            codes = torch.clamp(torch.round(m / scale), -7, 7).to(torch.int8)
            state[key] = {"quant_exp_avg": codes, "scale": scale} if m.numel() > 1024 else {"exp_avg": m}
        settings = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.0, "use_4bit": True, "cautious": False}
        settings |= {"quant_threshold": 1024, "grad_clip": 0.0, **group}
        return {"state": state, "param_groups": [{**settings, "params": list(range(len(self.momenta)))}]}


def qlion(dtype: torch.dtype = torch.float32) -> tuple[Original, list[nn.Parameter]]:
    params = weights(dtype)
    original = Original(params, dtype)
    for step in range(3):
        for position, param in enumerate(params):
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(9 * step + position)).to(
                dtype
            )
        original.step(1e-3, 0.9, 0.99)
    return original, params


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reloaded", [False, True])
def test_qlions_codes_are_decoded_as_it_decodes_them(dtype: torch.dtype, reloaded: bool) -> None:
    """codes * scale in the scale's dtype; torch's load makes floats of the codes, and the scale may be a number."""
    original, params = qlion(dtype)
    given = original.state_dict()
    held = copy.deepcopy(given)
    expected = [s["quant_exp_avg"] * s["scale"] if "scale" in s else s["exp_avg"] for s in given["state"].values()]
    if reloaded:
        for state in given["state"].values():
            if "scale" in state:
                state["quant_exp_avg"] = state["quant_exp_avg"].to(dtype)
        held = copy.deepcopy(given)
    assert interop.recognise(given) == "qlion"
    ours = Lion32bit(params)
    ours.load_state_dict(interop.from_qlion(given, ours))
    for param, momentum in zip(params, expected, strict=True):
        assert_same(ours.momentum(param), momentum.float())
    assert_same(given, held)
    given["state"][0] = {"quant_exp_avg": torch.zeros(64, 64, dtype=torch.int8), "scale": 0.0}
    assert not interop.from_qlion(given, ours)["state"][0]["exp_avg"].any()
    given["state"][0]["scale"] = None
    with pytest.raises(ValueError, match="scale=None"):
        interop.from_qlion(given, ours)


def test_qlions_training_goes_on_under_its_own_rule() -> None:
    """Unquantised, the signs of its next updates are those of Lion with (b1*b2, b2), which is what it becomes."""
    original, params = qlion()
    given = original.state_dict()
    given["state"] = {key: {"exp_avg": m.clone()} for key, m in enumerate(original.momenta)}
    mine = [nn.Parameter(param.detach().clone()) for param in params]
    ours = Lion32bit(mine)
    ours.load_state_dict(interop.from_qlion(given, ours))
    assert ours.param_groups[0]["betas"] == (0.9 * 0.99, 0.99)
    for step in range(3, 9):
        for position, (param, twin) in enumerate(zip(params, mine, strict=True)):
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(9 * step + position))
            twin.grad = param.grad.clone()
        original.step(1e-3, 0.9, 0.99)
        ours.step()
    for param, twin in zip(params, mine, strict=True):
        assert torch.allclose(param, twin, rtol=0, atol=1e-6)  # it rounds otherwise; a wrong sign would be 2e-3

    back = interop.to_qlion(ours)
    assert back["param_groups"][0]["betas"] == pytest.approx((0.9, 0.99), rel=1e-15)  # b1 * b2 / b2, rounded
    assert back["param_groups"][0].keys() >= {"use_4bit", "quant_threshold", "cautious", "grad_clip"}
    assert interop.recognise(back) == "qlion"


def test_qlions_settings_and_its_face_here() -> None:
    """Clipping and caution come along; the QLion here keeps the betas where it is asked for Lion's order."""
    original, params = qlion()
    given = original.state_dict(cautious=True, grad_clip=0.5)
    plain, face, faithful = (
        Lion4bit(params),
        QLion(params, use_4bit=True),
        QLion(params, use_4bit=True, momentum_first=True),
    )
    expected = {"plain": (0.9 * 0.99, 0.99), "face": (0.9, 0.99), "faithful": (0.9 * 0.99, 0.99)}
    for name, ours in (("plain", plain), ("face", face), ("faithful", faithful)):
        ours.load_state_dict(interop.from_qlion(given, ours))
        group = ours.param_groups[0]
        assert (group["betas"], group["cautious"], group["grad_clip"]) == (expected[name], "gradient", 0.5)
        assert group["optim_bits"] == 4
    with pytest.raises(ValueError, match="b1 must be less than b2"):
        interop.to_qlion(Lion32bit(params, betas=(0.99, 0.9)))
