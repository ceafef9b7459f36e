"""Residuals of compensated bfloat16 parameters, joined to them again: the exact float32 weights."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

from lionbits_reference import rounding
from lionbits_reference.spec import Plan

from .entries import RESIDUAL


def joined(param: Tensor, residual: Tensor) -> Tensor:
    """Return the float32 weights of a bfloat16 parameter and its residual.

    Args:
        param: the values that bfloat16 kept, as bfloat16 or as float32; or float32 weights that are complete already.
        residual: int16 or int8 of the same shape, on any device.

    Returns:
        float32 of the parameter's shape, on its device, over memory of its own.

    Raises:
        ValueError: the float32 values are neither what bfloat16 kept nor complete: somebody else changed them.
    """
    on_device = residual.to(param.device)
    if param.dtype == torch.float32:
        low = param.view(torch.int32) & 0xFFFF
        kept, whole = low == 0, low == (rounding.residual_bits(on_device) & 0xFFFF)
        spoilt = int((~(kept | whole)).sum())
        if spoilt:
            raise ValueError(
                f"a float32 parameter of shape {tuple(param.shape)} is not what {RESIDUAL} in its state belongs to: "
                f"{spoilt:,} of {param.numel():,} values have more bits than bfloat16 keeps. Load the model's weights "
                f"of the same checkpoint first, or delete {RESIDUAL} from the state."
            )
        on_device = torch.where(kept, on_device, 0)
    return rounding.load_param(param.detach().clone(), on_device)


def weights(plan: Plan, param: Tensor, state: MutableMapping[str, Any]) -> Tensor | None:
    """Return the weights that a float32 parameter has with the residual in its state; None without one.

    Args:
        plan: of the parameter.
        param: what of it is on this rank.
        state: of the parameter.

    Raises:
        ValueError: as :func:`joined`.
    """
    if plan.param_dtype != torch.float32 or RESIDUAL not in state:
        return None
    return joined(param.detach(), state[RESIDUAL])


def resized(residual: Tensor, master_bits: int) -> Tensor:
    """Return the residual for ``master_bits``: 24 bits become 32 exactly, 32 become the nearest 24 that fit.

    The bfloat16 parameter stays as it is, so the largest residuals round down: rounded up they would be its next value.

    Args:
        residual: int16, of 32 bits, or int8, of 24.
        master_bits: 32 or 24.

    Returns:
        int16 or int8; ``residual`` itself where it is that already.
    """
    if (residual.dtype == torch.int8) == (master_bits == 24):
        return residual
    if master_bits == 32:
        return residual.to(torch.int16) << 8
    return ((residual.to(torch.int32) + 0x80) >> 8).clamp(max=127).to(torch.int8)
