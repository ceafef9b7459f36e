"""Allocation of state beside its parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lionbits_reference.spec import TensorSpec

from . import huge_pages


def zeros(wanted: Sequence[Mapping[str, TensorSpec]], device: torch.device) -> list[dict[str, Tensor]]:
    """Return zeroed state tensors on the device for each of the specs."""
    return [{key: _zeros(spec, device) for key, spec in specs.items()} for specs in wanted]


def _zeros(spec: TensorSpec, device: torch.device) -> Tensor:
    empty = torch.empty(spec.shape, dtype=spec.dtype, device=device)
    return (huge_pages.ask(empty) if device.type == "cpu" else empty).zero_()
