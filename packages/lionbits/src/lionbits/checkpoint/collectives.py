"""State in dtypes that collective calls carry: neither gloo nor NCCL has int16, so that leaves as pairs of bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lionbits_reference.spec import TensorSpec


def carried(spec: TensorSpec) -> TensorSpec:
    """How a checkpoint holds what the state has: int16, which neither gloo nor NCCL carries, as pairs of bytes."""
    return TensorSpec((*spec.shape, 2), torch.uint8) if spec.dtype == torch.int16 else spec


def in_bytes(value: object) -> bool:
    """Whether it is held so, if it should be int16."""
    return isinstance(value, Tensor) and value.dtype == torch.uint8


def to_bytes(value: Any) -> Any:
    """int16 as pairs of bytes, over the same memory; anything else as it is."""
    return value[..., None].view(torch.uint8) if isinstance(value, Tensor) and value.dtype == torch.int16 else value


def from_bytes(value: Any, spec: TensorSpec | None) -> Any:
    """What are pairs of bytes, and should be int16; anything else as it is."""
    wanted = spec is not None and spec.dtype == torch.int16 and in_bytes(value) and value.shape[-1:] == (2,)
    return value.contiguous().view(torch.int16)[..., 0] if wanted else value
