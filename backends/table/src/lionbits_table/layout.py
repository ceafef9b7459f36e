"""The order in which a kernel reads a parameter and its gradient: strides, and the blocks of the fast path."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lionbits_reference.spec import Plan, Slot

from .record import EVEN

#: Dimensions inside a row that kernels can walk.
_DIMENSIONS = 3


class Walk(NamedTuple):
    """A slot as (rows, columns). Strides are (row, outer, middle, inner), in elements.

    Where ``inner`` is 0, the columns of both tensors are consecutive; else it and ``middle`` are the sizes of the two
    inner dimensions of a row.
    """

    rows: int
    columns: int
    param: tuple[int, int, int, int]
    grad: tuple[int, int, int, int]
    middle: int = 0
    inner: int = 0


def walk(plan: Plan, slot: Slot, grad: Tensor) -> Walk | None:
    """Return the common walk of the slot's parameter and gradient; None if one of them needs a copy."""
    rows, columns = slot.matrix
    row, dimensions = _dimensions(slot.param, grad, rows)
    if not dimensions or dimensions == [(columns, 1, 1)]:
        if (rows == 1 or row == (columns, columns)) and _one_row_will_do(plan, slot, columns):
            return Walk(1, rows * columns, (0, 0, 0, 1), (0, 0, 0, 1))
        return Walk(rows, columns, (row[0], 0, 0, 1), (row[1], 0, 0, 1))
    reach = [sum((size - 1) * strides[i] for size, *strides in dimensions) for i in (0, 1)]
    if len(dimensions) > _DIMENSIONS or max(*reach, columns) >= 2**31:
        return None
    (_, *outer), (middle, *between), (inner, *within) = [(1, 0, 0)] * (_DIMENSIONS - len(dimensions)) + dimensions
    of_param, of_grad = zip(row, outer, between, within, strict=True)
    return Walk(rows, columns, of_param, of_grad, middle, inner)


def even_blocks(plan: Plan, slot: Slot, found: Walk, block: int) -> int:
    """Return the number of leading blocks with even rows: aligned, consecutive, in one high half of positions."""
    whole_rows = found.columns % EVEN == 0
    strides = (found.param[0], found.grad[0])
    last = slot.start + (found.rows - 1) * slot.row_pitch + found.columns - 1
    if (
        found.inner
        or (found.rows > 1 and (not whole_rows or any(stride % EVEN for stride in strides)))
        or slot.start >> 33 != last >> 33
        or any(tensor.data_ptr() % EVEN for tensor in (slot.param, *along(plan, slot)))
    ):
        return 0
    return found.rows * (-(-found.columns // block) if whole_rows else found.columns // block)


def along(plan: Plan, slot: Slot) -> list[Tensor]:
    """Return state that is laid out along the parameter's elements, in rows of its own."""
    return [slot.state[key] for key in plan.state_spec(slot.param.shape) if key != "exp_avg_scale"]


def _dimensions(param: Tensor, grad: Tensor, rows: int) -> tuple[tuple[int, int], list[tuple[int, int, int]]]:
    """Return strides of a row in both tensors, and (size, strides) of the inner dimensions, joined if possible.

    All dimensions are inside the only row of a parameter that is one.
    """
    shape, strides = list(param.shape), list(zip(param.stride(), grad.stride(), strict=True))
    row = (0, 0)
    if len(shape) > 1 and rows != 1:
        row, shape, strides = strides[0], shape[1:], strides[1:]
    joined: list[tuple[int, int, int]] = []
    for size, (p, g) in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if joined and joined[-1][1:] == (size * p, size * g):
            joined[-1] = (joined[-1][0] * size, p, g)
        else:
            joined.append((size, p, g))
    return row, joined


def _one_row_will_do(plan: Plan, slot: Slot, columns: int) -> bool:
    """True if blocks, bytes and noise stay the same if the rows are seen as one."""
    format = plan.format
    if format.quantised and (columns * format.bits % 8 or (format.block_size and columns % format.block_size)):
        return False
    return not (format.quantised or plan.draws_for_param) or slot.row_pitch == columns
