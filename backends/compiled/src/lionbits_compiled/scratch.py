"""Working memory of calls, kept for the next call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Columns(NamedTuple):
    """Numbers of rows: ``table`` is (count, rows), ``each`` has them singly, (rows, 1)."""

    table: Tensor
    each: tuple[Tensor, ...]


class Scratch:
    """Memory that serves one matrix after the other, as large as the largest of them.

    Views are cached: to make one takes longer than many a small matrix.
    """

    def __init__(self) -> None:
        self._flat: dict[tuple[str, torch.dtype], Tensor] = {}
        self._taken: dict[tuple[str, torch.dtype, int, int], Tensor] = {}
        self._columns: dict[tuple[str, torch.dtype, int, int], Columns] = {}
        self._filled: dict[str, tuple[float, int]] = {}

    def take(self, name: str, dtype: torch.dtype, height: int, width: int) -> Tensor:
        """Return an uninitialised matrix of this name."""
        taken = self._taken.get((name, dtype, height, width))
        if taken is None:
            flat = self._reserved(name, dtype, height * width)
            taken = self._taken[name, dtype, height, width] = flat[: height * width].view(height, width)
        return taken

    def columns(self, name: str, dtype: torch.dtype, count: int, height: int) -> Columns:
        """Return ``count`` uninitialised numbers of each row."""
        found = self._columns.get((name, dtype, count, height))
        if found is None:
            table = self.take(name, dtype, count, height)
            found = self._columns[name, dtype, count, height] = Columns(table, table[:, :, None].unbind())
        return found

    def filled(self, name: str, number: float, height: int) -> Tensor:
        """Return float32 (height, 1) with the number in all rows; not written if the last of this name had it."""
        column = self.take(name, torch.float32, height, 1)
        held, rows = self._filled.get(name, (0.0, 0))
        if held != number or rows < height or number == 0:  # which has two signs
            column.fill_(number)
            self._filled[name] = number, height
        return column

    def _reserved(self, name: str, dtype: torch.dtype, size: int) -> Tensor:
        flat = self._flat.get((name, dtype))
        if flat is None or len(flat) < size:
            flat = self._flat[name, dtype] = torch.empty(size, dtype=dtype, device="cpu")
            self._filled.pop(name, None)
            for held in (self._taken, self._columns):  # of the memory before, which is to go
                for key in [key for key in held if key[:2] == (name, dtype)]:
                    del held[key]
        return flat
