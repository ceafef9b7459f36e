"""Memory that calls work in, kept for the next."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Memory that serves one matrix after the other, as large as the largest of them."""

    def __init__(self) -> None:
        self._flat: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, dtype: torch.dtype, height: int, width: int) -> Tensor:
        """A matrix of this name, with whatever is in it."""
        size = height * width
        flat = self._flat.get((name, dtype))
        if flat is None or len(flat) < size:
            flat = self._flat[name, dtype] = torch.empty(size, dtype=dtype, device="cpu")
        return flat[:size].view(height, width)
