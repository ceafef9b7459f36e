"""CPU tensors over the memory of simulated ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import guard


class View(NamedTuple):
    """What it takes to make a CPU tensor over the memory of another, later."""

    address: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> View:
        """Describe a tensor."""
        return cls(tensor.data_ptr(), tensor.dtype, tuple(tensor.size()), tuple(tensor.stride()))

    def tensor(self) -> Tensor:
        """Return a CPU tensor over the memory, which it does not keep."""
        if not all(self.size):
            return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="cpu")
        last = sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        whole = guard.bytes_at(self.address, (last + 1) * self.dtype.itemsize).view(self.dtype)
        return whole.as_strided(self.size, self.stride)
