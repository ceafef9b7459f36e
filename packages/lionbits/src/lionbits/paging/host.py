"""Memory for pages: pinned where a device reads it, plain elsewhere, or files that have lost their names.

State of many small parameters shares a page, so that one copy brings them all; a large parameter's has memory of its
own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lionbits_reference.spec import TensorSpec

#: Bytes that tensors in a page begin at multiples of: of a cache line, and of what any kernel wants.
ALIGNMENT = 64

Specs = Mapping[str, TensorSpec]


def allocate(
    wanted: Sequence[Specs], page_size: int, folder: str | Path | None, *, pinned: bool
) -> list[dict[str, Tensor]]:
    """Zeroed state tensors on the host for each of the specs.

    Tensors that share memory are of one dtype: torch saves no others.
    """
    made: list[dict[str, Tensor]] = [{} for _ in wanted]
    for run in _runs([size(specs) for specs in wanted], page_size):
        for dtype in dict.fromkeys(spec.dtype for j in run for spec in wanted[j].values()):
            specs = [(j, key, spec) for j in run for key, spec in wanted[j].items() if spec.dtype == dtype]
            page = _memory(sum(_padded(bytes_of(spec)) for _, _, spec in specs), folder, pinned=pinned)
            at = 0
            for j, key, spec in specs:
                made[j][key], at = carve(page, at, spec)
    return made


def size(specs: Specs) -> int:
    """Bytes that the tensors of a parameter take in pages."""
    return sum(_padded(bytes_of(spec)) for spec in specs.values())


def carve(page: Tensor, at: int, spec: TensorSpec) -> tuple[Tensor, int]:
    """The tensor that begins at byte ``at`` of a page, and where the next one may begin."""
    return page[at : at + bytes_of(spec)].view(spec.dtype).view(spec.shape), at + _padded(bytes_of(spec))


def bytes_of(spec: TensorSpec) -> int:
    """Of a tensor."""
    return torch.Size(spec.shape).numel() * spec.dtype.itemsize


def _runs(sizes: Sequence[int], page_size: int) -> list[range]:
    """Which neighbours share memory: as many as a page holds, or one that is larger."""
    runs, first, total = [], 0, 0
    for j, taken in enumerate(sizes):
        if j > first and total + taken > page_size:
            runs.append(range(first, j))
            first, total = j, 0
        total += taken
    if first < len(sizes):
        runs.append(range(first, len(sizes)))
    return runs


def _memory(count: int, folder: str | Path | None, *, pinned: bool) -> Tensor:
    """So many zeroed bytes."""
    if folder is None or count == 0:
        return torch.zeros(count, dtype=torch.uint8, device="cpu", pin_memory=pinned)
    handle, name = tempfile.mkstemp(prefix="lionbits-", suffix=".page", dir=folder)
    try:
        os.truncate(handle, count)
        return torch.from_file(name, shared=True, size=count, dtype=torch.uint8, device="cpu")
    finally:
        os.close(handle)
        Path(name).unlink()  # the file lives as long as its memory is mapped


def _padded(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
