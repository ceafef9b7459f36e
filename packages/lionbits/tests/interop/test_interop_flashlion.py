"""FlashLion's state dicts, by its formulas; and its own decoder, where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion8bit, Lion32bit, interop
from lionbits.interop import flashlion

from ..family import assert_same


def flash(momentum: torch.Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """FlashLion's compressed state of a momentum, by its formulas."""
    groups = nn.functional.pad(momentum.reshape(-1), (0, -momentum.numel() % 32)).reshape(-1, 32)
    absmax = groups.abs().amax(dim=1).clamp(min=1e-12)
    unit = groups / absmax[:, None]
    codes = torch.floor(127 * (2 * unit / (1 + unit.abs())) + 0.5).to(torch.int8).reshape(-1)[: momentum.numel()]
    scales = absmax.to(torch.float16)
    return {
        "exp_avg::quantized": codes.reshape(momentum.shape),
        "exp_avg::scales": scales.view(torch.bfloat16) if dtype == torch.bfloat16 else scales,
    }


FLASH_GROUP = {
    "betas": (0.9, 0.99),
    "weight_decay": 0.1,
    "lr": 1e-3,
    "initial_lr": 1e-3,
    "master_bytewidth": 3,
    "quantize": True,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(64, 64), (3, 77), (5,), ()], ids=str)
def test_flashlions_codes_are_near_what_was_coded(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Within the widest step of softsign's inverse, 2/127 of the group's largest, and the scale's rounding."""
    momentum = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    state = flash(momentum, dtype)
    given = {"state": {0: state}, "param_groups": [{**FLASH_GROUP, "params": [0]}]}
    assert interop.recognise(given) == "flashlion"
    ours = Lion32bit([nn.Parameter(torch.zeros(shape, dtype=dtype))])
    ours.load_state_dict(interop.from_flashlion(given, ours))
    (param,) = ours.param_groups[0]["params"]
    assert (ours.momentum(param) - momentum).abs().max() <= momentum.abs().max() * (2 / 127 + 2.0**-10)
    assert ours.param_groups[0]["initial_lr"] == 1e-3


def test_flashlions_own_decoder_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel, in Triton's interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for module in ("triton", "flashoptim"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside somebody else's import
        kernels = importlib.import_module("flashoptim.optimizers")
    momentum = torch.randn(3, 77) * torch.logspace(-6, 2, 3)[:, None]
    state = flash(momentum, torch.float32)
    codes, scales = state["exp_avg::quantized"], state["exp_avg::scales"]
    expected = torch.empty_like(momentum)
    kernel = kernels._triton_dequantize_kernel.fn
    kernel[(1,)](codes, scales, expected, momentum.numel(), 127.0, 32, False, True, BLOCK_SIZE_N=256)
    assert_same(
        flashlion.read({"state": {0: state}, "param_groups": [{**FLASH_GROUP, "params": [0]}]}).held[0].exp_avg(),
        expected,
    )


def test_flashlions_plain_form_master_bits_and_shards() -> None:
    group = {**FLASH_GROUP, "params": [0]}
    ours = Lion8bit([nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))])
    plain = {"state": {0: {"exp_avg": torch.ones(64, 64, dtype=torch.bfloat16)}}, "param_groups": [group]}
    ours.load_state_dict(interop.from_flashlion(plain, ours))
    assert torch.equal(ours.momentum(ours.param_groups[0]["params"][0]), torch.ones(64, 64))
    plain["state"][0]["error_bits"] = torch.ones(64, 64, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="get_fp32_model_state_dict"):
        interop.from_flashlion(plain, ours)
    state = flash(torch.ones(64, 64), torch.bfloat16)
    state["exp_avg::scales"] = state["exp_avg::scales"][:7]
    with pytest.raises(ValueError, match="7 scales for 4,096 codes"):
        interop.from_flashlion({"state": {0: state}, "param_groups": [group]}, ours)
