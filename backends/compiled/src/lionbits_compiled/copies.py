"""Copies of many tensors into one matrix, and back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor

from . import private
from .layouts import FEW, LARGE, Layout
from .scratch import Scratch


class Stack(NamedTuple):
    """Neighbours of one shape, copied together: in the cache that takes 0.4 of the time of single copies."""

    members: slice
    dense: Tensor  # with nothing between them
    rows: Tensor | None  # the same elements in the matrix, unless it has nothing between them either


class Copies:
    """A matrix of some tensors, each in rows of its own, filled up at their ends.

    Args:
        matrix: in scratch (the heights of all layouts at least, elements of a row).
        theirs: the tensors. None is kept: later ones are like them.
        layouts: of each.
        scratch: for what is between.
    """

    def __init__(self, matrix: Tensor, theirs: Sequence[Tensor], layouts: Sequence[Layout], scratch: Scratch) -> None:
        self.views: list[Tensor] = []
        self._alone: list[int] = []
        self._stacks: list[Stack] = []
        ends = list(accumulate(found.height for found in layouts))
        for (found, shape), neighbours in groupby(range(len(theirs)), lambda j: (layouts[j], theirs[j].shape)):
            places = list(neighbours)
            count, columns = len(places), shape.numel() // found.rows
            block = matrix[ends[places[0]] - found.height : ends[places[-1]]]
            rows = block.view(count * found.rows, -1)[:, :columns]
            self.views += rows.unflatten(0, (count, found.rows)).unbind()
            if count < FEW or shape.numel() > LARGE:
                self._alone += places
            else:
                dtype = theirs[places[0]].dtype
                whole = rows.is_contiguous() and rows.dtype == dtype
                dense = rows if whole else scratch.take("stacked", dtype, *rows.shape)
                self._stacks.append(Stack(slice(places[0], places[-1] + 1), dense, None if whole else rows))
        self.views = [view.view(tensor.shape) for view, tensor in zip(self.views, theirs, strict=True)]

    def fetch(self, theirs: list[Tensor]) -> None:
        """Fill the matrix; elements between the tensors stay as they are."""
        for members, dense, rows in self._stacks:
            some = theirs[members]
            torch.stack(some, out=dense.view(len(some), *some[0].shape))
            if rows is not None:
                rows.copy_(dense)
        if self._alone:
            private.copy([self.views[j] for j in self._alone], [theirs[j] for j in self._alone])

    def write_back(self, theirs: list[Tensor]) -> None:
        """Write what is in the matrix to the tensors."""
        private.copy(theirs, self.views)
