"""The fields of a row of the device table, which describes a slot to kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

#: Divides the number of elements of even rows, and their addresses in bytes.
EVEN = 16


class Record(NamedTuple):
    """A slot as (rows, columns), in 64-bit integers. Addresses are in bytes, strides in elements.

    Where ``inner`` is 0, the columns of parameter and gradient are consecutive; else it and ``middle`` are the sizes of
    the two inner dimensions of a row, which is walked by the strides (row, outer, middle, inner) of either tensor.
    State is contiguous, and packed codes begin a new byte with every row.
    """

    param: Any  # addresses
    momentum: Any  # exp_avg, or its codes
    scale: Any
    residual: Any
    columns: Any
    row_blocks: Any  # blocks in a row
    even_blocks: Any  # this many blocks, from the first on, are even if the gradient is
    index: Any
    start: Any
    pitch: Any
    param_row: Any
    param_outer: Any
    param_middle: Any
    param_inner: Any
    grad_row: Any
    grad_outer: Any
    grad_middle: Any
    grad_inner: Any
    middle: Any
    inner: Any
