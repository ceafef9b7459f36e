"""The settings that a kernel specialises on (Plan), and the numbers that all tensors of a call share (Hyper)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch

from . import checks
from .format import Format, TensorSpec

PARAM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDINGS = ("dithered", "stochastic", "nearest")
PARAM_ROUNDINGS = ("nearest", "dithered", "stochastic", "compensated")
CAUTIONS = ("none", "mask", "gradient")
NONFINITE = ("skip", "propagate")
MASTER_BITS = (32, 24)


def float32(value: float) -> float:
    """``value`` rounded to binary32, once, to nearest even; as a Python float."""
    return ctypes.c_float(value).value


@dataclass(frozen=True)
class Plan:
    """All that a kernel specialises on. Hashable: tensors with equal plans share a launch.

    Attributes:
        param_dtype: float32, bfloat16 or float16.
        grad_dtype: one of the same three, not necessarily the parameter's.
        format: how momentum is held.
        caution: ``"none"``; ``"mask"``: elements whose c and g do not share a non-zero sign do not move;
            ``"gradient"``: where c and g have opposite signs the update takes the gradient's.
        param_rounding: how p' becomes ``param_dtype``; ``"nearest"`` for float32 and float16.
        master_bits: 32 or 24, what ``"compensated"`` keeps of p' in all; 32 for the other roundings.
        nonfinite: ``"skip"`` leaves an element alone whose g or m' is not finite; ``"propagate"``: plain arithmetic.
    """

    param_dtype: torch.dtype
    grad_dtype: torch.dtype
    format: Format
    caution: str = "none"
    param_rounding: str = "nearest"
    master_bits: int = 32
    nonfinite: str = "skip"

    def __post_init__(self) -> None:
        hint = "lionbits updates float32, bfloat16 and float16 tensors."
        checks.choice("parameter dtype", self.param_dtype, PARAM_DTYPES, hint)
        checks.choice("gradient dtype", self.grad_dtype, PARAM_DTYPES, hint)
        checks.choice("caution", self.caution, CAUTIONS)
        checks.choice("param_rounding", self.param_rounding, PARAM_ROUNDINGS)
        checks.choice("master_bits", self.master_bits, MASTER_BITS)
        checks.choice("nonfinite", self.nonfinite, NONFINITE)
        if self.param_dtype != torch.bfloat16 and self.param_rounding != "nearest":
            hint = f"A {self.param_dtype} parameter takes param_rounding='nearest'."
            rule = "is for bfloat16 parameters"
            raise checks.refusal(ValueError, "param_rounding", self.param_rounding, rule, hint)

    @property
    def draws_for_param(self) -> bool:
        """True if parameters are rounded with noise, so that an element's position affects its value."""
        return self.param_rounding in ("dithered", "stochastic") or self.master_bits == 24

    def state_spec(self, shape: Sequence[int]) -> dict[str, TensorSpec]:
        """Names, shapes and dtypes of the state that kernels see, of a parameter (or shard) of ``shape``."""
        spec = self.format.momentum_spec(shape)
        if self.param_rounding == "compensated":
            spec["param_residual"] = TensorSpec(tuple(shape), torch.int16 if self.master_bits == 32 else torch.int8)
        return spec


@dataclass(frozen=True)
class Hyper:
    """Run-time numbers that all tensors of a call share, rounded to binary32 once, on the host.

    Attributes:
        b1, one_minus_b1, b2, one_minus_b2: the betas; the differences are formed in binary64 before rounding.
        seed: an int in 0..2^64-1 that every rounding noise depends on.
        rounding: ``"dithered"``, ``"stochastic"`` or ``"nearest"``, of the momentum.
    """

    b1: float
    one_minus_b1: float
    b2: float
    one_minus_b2: float
    seed: int = 0
    rounding: str = "dithered"

    @classmethod
    def of(cls, betas: Sequence[float], seed: int = 0, rounding: str = "dithered") -> Hyper:
        """The numbers of ``betas=(beta1, beta2)``, two floats in [0, 1).

        Raises:
            TypeError, ValueError: naming the argument and the rule.
        """
        hint = "Lion's own are (0.9, 0.99)."
        rule = "must be two floats in [0, 1)"
        if not isinstance(betas, (tuple, list)):
            raise checks.mistyped("betas", betas, rule, hint)
        for i, beta in enumerate(betas):
            if not _is_real(beta):
                raise checks.mistyped(f"betas={checks.shown(betas)}, of which betas[{i}]", beta, rule, hint)
        if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
            raise checks.refusal(ValueError, "betas", betas, rule, hint)
        checks.integer("seed", seed, 0, 2**64 - 1)
        checks.choice("rounding", rounding, ROUNDINGS)
        b1, b2 = betas
        return cls(float32(b1), float32(1 - b1), float32(b2), float32(1 - b2), seed, rounding)


@overload
def decay_factor(lr: float, weight_decay: float) -> float: ...
@overload
def decay_factor(lr: torch.Tensor, weight_decay: float) -> torch.Tensor: ...
def decay_factor(lr: float | torch.Tensor, weight_decay: float) -> float | torch.Tensor:
    """keep = 1 - lr*wd in binary32, on the host; of a tensor ``lr``, a 0-d float32 tensor on its device."""
    decay = float32(weight_decay)
    if isinstance(lr, torch.Tensor):
        return 1 - lr.detach().reshape(()).to(torch.float32) * decay
    return float32(1 - float32(float32(lr) * decay))


def check_rate(lr: Any, weight_decay: Any) -> None:
    """Refuse a learning rate or weight decay that is not a finite float32 >= 0.

    A learning rate may be a tensor of one element; its value is checked where that costs no host sync. What is left of
    zero at the end of a schedule, by rounding (LinearLR comes to -2e-18), is accepted, and used as it is.

    Raises:
        TypeError, ValueError: naming the argument and the rule.
    """
    if isinstance(lr, torch.Tensor):
        if lr.layout != torch.strided or lr.is_nested or lr.is_quantized:
            raise TypeError(
                f"lr is a tensor of layout {lr.layout} and {lr.dtype}: it must be a plain tensor, or a float"
            )
        if lr.numel() != 1:
            raise ValueError(f"Tensor lr must be 1-element: it has shape {tuple(lr.shape)}")
        if lr.is_meta:
            raise checks.refusal(ValueError, "lr", "meta", "is a tensor on the meta device, which holds no number")
        if lr.device.type == "cpu":
            _check_rate("lr", lr.item())
    else:
        _check_rate("lr", lr)
    _check_rate("weight_decay", weight_decay)


def _check_rate(name: str, value: Any) -> None:
    if isinstance(value, float) and -1e-12 < value < 0:
        return
    if not math.isfinite(float32(checks.number(name, value))):
        raise checks.refusal(ValueError, name, value, "must be finite as a float32")


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
