"""The plans that people train with, and who does: half of all that is drawn."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from lionbits_reference.spec import Format, Plan


class CommonPlan(NamedTuple):
    """A plan, and who uses it."""

    plan: Plan
    users: str


_F32, _BF16, _F16 = torch.float32, torch.bfloat16, torch.float16
_FLOAT32 = Format.of(32)
_8, _4, _2 = Format.of(8), Format.of(4), Format.of(2)
_TENSOR_WISE = Format.of(8, block_wise=False)


def _same(dtype: torch.dtype, format: Format, users: str, **settings: Any) -> CommonPlan:
    """Gradients of the parameters' own dtype, as autograd makes them."""
    return CommonPlan(Plan(dtype, dtype, format, **settings), users)


COMMON_PLANS = (
    # float32 parameters
    _same(_F32, _8, "fine-tuning under autocast, Lion8bit as it comes"),
    _same(_F32, _FLOAT32, "fine-tuning under autocast, Lion; biases and norms of all others"),
    _same(_F32, _4, "fine-tuning under autocast, Lion4bit as it comes"),
    _same(_F32, _8, "cautious Lion in the manner of timm and C-Optim", caution="mask"),
    _same(_F32, _FLOAT32, "the same with momentum that is not quantised", caution="mask"),
    _same(_F32, _8, "who takes the gradient's sign where the two differ", caution="gradient"),
    _same(_F32, _8, "who wants to see where a NaN comes from", nonfinite="propagate"),
    _same(_F32, _TENSOR_WISE, "bitsandbytes' block_wise=False"),
    _same(_F32, Format.of(8, block_size=64), "LoRA: rows of a few hundred, or of 8 to 64"),
    _same(_F32, Format.of(8, block_size=2048), "bitsandbytes' first blocks"),
    _same(_F32, _4, "QLion with cautious=True", caution="gradient"),
    _same(_F32, Format.of(4, "e0m3", block_wise=False), "QLion's own codes: uniform, one scale per tensor"),
    # bfloat16 parameters
    _same(_BF16, _8, "LLMs in pure bfloat16, Lion8bit"),
    _same(_BF16, _4, "LLMs in pure bfloat16, Lion4bit"),
    _same(_BF16, _FLOAT32, "LLMs in pure bfloat16, Lion; their biases and norms"),
    _same(_BF16, _8, "LLMs, parameters rounded without bias", param_rounding="dithered"),
    _same(_BF16, _4, "LLMs at 4 bits, parameters rounded without bias", param_rounding="dithered"),
    _same(_BF16, _8, "trainers of diffusion models", param_rounding="stochastic"),
    _same(_BF16, _FLOAT32, "the same with momentum that is not quantised", param_rounding="stochastic"),
    _same(_BF16, _8, "compensated bfloat16, 32 bits in all", param_rounding="compensated"),
    _same(_BF16, _4, "compensated bfloat16, 24 bits in all", param_rounding="compensated", master_bits=24),
    _same(_BF16, _8, "cautious LLMs", caution="mask"),
    _same(_BF16, _4, "cautious LLMs at 4 bits", caution="mask"),
    _same(_BF16, Format.of(8, "e4m3", 128), "who is used to FP8 in blocks of 128"),
    _same(_BF16, Format.of(4, "e2m1", 32), "who is used to MXFP4: e2m1 in blocks of 32"),
    _same(_BF16, Format.of(8, block_size=64), "LoRA in bfloat16"),
    _same(_BF16, _2, "research on 2 bits"),
    # float16 parameters
    _same(_F16, _8, "float16 with a GradScaler"),
    _same(_F16, _FLOAT32, "float16 with a GradScaler, Lion; biases and norms"),
    _same(_F16, _4, "float16 with a GradScaler, Lion4bit"),
    # gradients of another dtype
    CommonPlan(Plan(_F32, _BF16, _8), "FSDP: float32 parameters, gradients reduced in bfloat16"),
    CommonPlan(Plan(_F32, _F16, _8), "float32 parameters, gradients of a float16 model"),
    CommonPlan(Plan(_BF16, _F32, _8), "bfloat16 parameters, gradients accumulated in float32"),
)


@functools.cache
def common_plans(bits: int | None = None, dtype: torch.dtype | None = None) -> tuple[Plan, ...]:
    """The plans of :data:`COMMON_PLANS`, or those of some bits and parameter dtype."""
    return tuple(
        plan for plan, _ in COMMON_PLANS if bits in (None, plan.format.bits) and dtype in (None, plan.param_dtype)
    )
