"""Sums of many vectors as balanced binary trees, in a number of operations that does not grow with the vectors."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import torch
from torch import Tensor


def sums(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """The sum of each of the consecutive segments of ``x``, in its dtype, of shape (len(lengths),).

    A segment is filled up with zeros to a power of two and halved (x[:n/2] + x[n/2:]) down to one number. Segments of
    one padded size are the rows of a matrix; shorter ones join it when it has been halved down to their size.

    Args:
        x: 1-d, without -0.0 and of ``sum(lengths)`` elements.
        lengths: of the segments, in their order; an empty one has the sum 0.
    """
    of_size: dict[int, list[int]] = {}
    for j, length in enumerate(lengths):
        of_size.setdefault(_padded(length), []).append(j)
    size = max(of_size, default=1)
    if x.numel() == size * len(lengths):  # the segments are the rows
        return _halved(x.view(-1, size), 1).squeeze(1)
    segments, zeros = x.split(list(lengths)), x.new_zeros(size)
    rows, order = x.new_empty(0, size), []
    for size in sorted(of_size, reverse=True):
        joining = of_size[size]
        filled = [part for j in joining for part in (segments[j], zeros[: size - lengths[j]])]
        rows = torch.cat([_halved(rows, size), torch.cat(filled).view(-1, size)])
        order += joining
    by_segment = sorted(zip(order, _halved(rows, 1).squeeze(1).unbind(), strict=True), key=itemgetter(0))
    return torch.stack([total for _, total in by_segment])


def _halved(rows: Tensor, size: int) -> Tensor:
    while rows.shape[1] > size:
        half = rows.shape[1] // 2
        rows = rows[:, :half] + rows[:, half:]
    return rows


def _padded(length: int) -> int:
    return int(1 << max(length - 1, 0).bit_length())
