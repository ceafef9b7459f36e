"""The codec, by kernels: momentum is passed to them as a gradient, and returned as a parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lionbits_reference.spec import Format, Plan, Slot


def encode(format: Format, momentum: Tensor, launch: Callable[[Plan, Slot, Tensor, Tensor], None]) -> dict[str, Tensor]:
    """Return state tensors of ``format`` for a float32 ``momentum`` of any shape.

    Args:
        format: of the state.
        momentum: float32.
        launch: encodes a gradient into the slot's state; given its largest magnitude too (0-d), for one scale.
    """
    if not format.quantised:
        return {"exp_avg": momentum.to(torch.float32, copy=True)}
    spec = format.momentum_spec(momentum.shape)
    state = {key: torch.zeros(s.shape, dtype=s.dtype, device=momentum.device) for key, s in spec.items()}
    slot = Slot(torch.empty_like(momentum, memory_format=torch.contiguous_format), state, 0)
    largest = momentum.abs().amax() if momentum.numel() else momentum.new_zeros(())
    launch(_plan(format), slot, momentum.contiguous(), largest)
    return state


def decode(
    format: Format, state: Mapping[str, Any], shape: Sequence[int], launch: Callable[[Plan, Slot], None]
) -> Tensor:
    """Return float32 momentum of ``shape``, contiguous.

    Args:
        format: of the state.
        state: its tensors.
        shape: of the parameter.
        launch: decodes the slot's state into its parameter.
    """
    if not format.quantised:
        exp_avg: Tensor = state["exp_avg"]
        return exp_avg.reshape(tuple(shape)).clone(memory_format=torch.contiguous_format)
    momentum = torch.empty(tuple(shape), dtype=torch.float32, device=state["exp_avg_codes"].device)
    launch(_plan(format), Slot(momentum, state, 0))
    return momentum


def _plan(format: Format) -> Plan:
    return Plan(torch.float32, torch.float32, format)
