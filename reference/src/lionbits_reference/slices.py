"""Slices: smaller slots that a slot is cut into, so that temporaries of a long tensor stay in cache.

Eager torch spends most of its time on long tensors in page faults of new temporaries: slices of about 1 MB are
several times faster. No bit depends on the cuts: they fall between rows, or between blocks of one long row.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .spec import Format, Slot

#: Elements of a slice; a multiple of every block size. 2^18 float32 numbers are 1 MB.
LIMIT = 1 << 18


def cut(slot: Slot, grad: Tensor, format: Format, limit: int = LIMIT) -> Iterator[tuple[Slot, Tensor]]:
    """Yield pieces of a slot with their gradients, in order: whole rows, or blocks if a row is longer than ``limit``.

    ``limit`` is even and a multiple of the block size, so that no cut divides a block or a pair that shares a hash.
    Every piece is a slot like any other; its tensors are views of the slot's. A long row of a tensor that cannot
    be viewed as a matrix (channels_last, say) is not cut.
    """
    count, width = slot.matrix
    if count * width == 0:
        return
    viewable = width <= limit or all(_is_matrix(t, count, width) for t in (*_tensors(slot), grad))
    if count * width <= limit or (count == 1 and not viewable):
        yield slot, grad
    elif width <= limit or not viewable:
        yield from _cut_rows(slot, grad, format, count, max(1, limit // width))
    else:
        for row, own in _cut_rows(slot, grad, format, count, 1) if count > 1 else ((slot, grad),):
            for first in range(0, width, limit):
                last = min(first + limit, width)
                yield columns(row, format, first, last), column_part(own, first, last)


def _cut_rows(slot: Slot, grad: Tensor, format: Format, count: int, step: int) -> Iterator[tuple[Slot, Tensor]]:
    for first in range(0, count, step):
        last = min(first + step, count)
        yield rows(slot, format, first, last), grad[first:last]


def rows(slot: Slot, format: Format, first: int, last: int) -> Slot:
    """Return rows ``first`` to ``last`` of a slot that has several."""
    state = {
        key: value if key == "exp_avg_scale" and format.tensor_wise else value[first:last]
        for key, value in _state_tensors(slot).items()
    }
    start = slot.start + first * slot.row_pitch
    return Slot(slot.param[first:last], state, slot.index, start, slot.row_pitch)


def columns(slot: Slot, format: Format, first: int, last: int) -> Slot:
    """Return elements ``first`` to ``last`` of a slot that can be seen as one row. Cuts divide no block and no byte."""

    def state_part(key: str, tensor: Tensor) -> Tensor:
        if key == "exp_avg_codes":
            return column_part(tensor, first * format.bits // 8, -(-last * format.bits // 8))
        if key == "exp_avg_scale" and format.tensor_wise:
            return tensor
        if key == "exp_avg_scale":
            return column_part(tensor, first // format.block_size, format.blocks(last))
        return column_part(tensor, first, last)

    state = {key: state_part(key, value) for key, value in _state_tensors(slot).items()}
    param = column_part(slot.param, first, last)
    return Slot(param, state, slot.index, slot.start + first, slot.row_pitch)


def column_part(tensor: Tensor, first: int, last: int) -> Tensor:
    """Return elements ``first`` to ``last`` of a tensor that can be seen as one row: (1, last - first)."""
    return tensor.reshape(1, -1)[:, first:last]


def _state_tensors(slot: Slot) -> dict[str, Tensor]:
    return {key: slot.state[key] for key in KEYS if key in slot.state}


def _tensors(slot: Slot) -> list[Tensor]:
    return [slot.param, *_state_tensors(slot).values()]


#: State that is laid out along the parameter, and so is cut with it.
KEYS = ("exp_avg", "exp_avg_codes", "exp_avg_scale", "param_residual")


def _is_matrix(tensor: Tensor, rows: int, columns: int) -> bool:
    """True if ``tensor`` can be viewed as (rows, columns), or does not have that many elements."""
    if tensor.numel() != rows * columns or tensor.dim() <= 1:
        return True
    try:
        tensor.view(rows, columns)
    except RuntimeError:
        return False
    return True
