"""State dtypes for collective calls: neither gloo nor NCCL carries int16, so it is sent as pairs of bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lionbits_reference.spec import TensorSpec


def carried(spec: TensorSpec) -> TensorSpec:
    """Return the spec of a state tensor in a checkpoint: int16 becomes pairs of bytes, all else stays."""
    return TensorSpec((*spec.shape, 2), torch.uint8) if spec.dtype == torch.int16 else spec


def in_bytes(value: object) -> bool:
    """True if ``value``, which should be int16, is held as pairs of bytes."""
    return isinstance(value, Tensor) and value.dtype == torch.uint8


def to_bytes(value: Any) -> Any:
    """View int16 as pairs of bytes, over the same memory; return anything else as it is."""
    return value[..., None].view(torch.uint8) if isinstance(value, Tensor) and value.dtype == torch.int16 else value


def from_bytes(value: Any, spec: TensorSpec | None) -> Any:
    """View pairs of bytes as int16 if ``spec`` asks for int16; return anything else as it is."""
    wanted = spec is not None and spec.dtype == torch.int16 and in_bytes(value) and value.shape[-1:] == (2,)
    return value.contiguous().view(torch.int16)[..., 0] if wanted else value
