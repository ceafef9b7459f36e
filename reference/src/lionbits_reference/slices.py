"""Cutting a slot into smaller slots, so that temporaries of a long tensor stay in cache.

The cost of eager torch on long tensors is page-faulting fresh temporaries: slices of about 1 MB are several
times faster,
and no bit depends on where the cuts fall: they fall between rows, or between blocks of one long row.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .spec import Format, Slot, matrix_shape

#: Elements of a slice; a multiple of every block size. 2^18 float32 numbers are 1 MB.
LIMIT = 1 << 18


def cut(slot: Slot, format: Format, limit: int = LIMIT) -> Iterator[Slot]:
    """The slot in order, in pieces of whole rows, or of whole blocks where a row is longer than ``limit``.

    ``limit`` is a multiple of the block size, and even, so that neither blocks nor pairs of lanes are torn. Every piece
    is a slot like any other, its tensors views of the slot's. A long row of a tensor that cannot
    be seen as a matrix without a copy (channels_last, say) is not cut.
    """
    count, width = matrix_shape(slot.param.shape)
    if count * width == 0:
        return
    if count * width <= limit:
        yield slot
    elif width <= limit or not all(_is_matrix(t, count, width) for t in _tensors(slot)):
        yield from _cut_rows(slot, format, count, max(1, limit // width))
    else:
        for row in _cut_rows(slot, format, count, 1) if count > 1 else (slot,):
            for first in range(0, width, limit):
                yield columns(row, format, first, min(first + limit, width))


def _cut_rows(slot: Slot, format: Format, count: int, step: int) -> Iterator[Slot]:
    for first in range(0, count, step):
        yield rows(slot, format, first, min(first + step, count))


def rows(slot: Slot, format: Format, first: int, last: int) -> Slot:
    """Rows ``first`` to ``last`` of a slot that has several."""
    state = {
        key: value if key == "exp_avg_scale" and format.tensor_wise else value[first:last]
        for key, value in _state_tensors(slot).items()
    }
    start = slot.start + first * slot.row_pitch
    return Slot(slot.param[first:last], slot.grad[first:last], state, slot.index, start, slot.row_pitch)


def columns(slot: Slot, format: Format, first: int, last: int) -> Slot:
    """Elements ``first`` to ``last`` of a slot that is one row, or can be seen as one; no block or byte may be torn."""

    def part(tensor: Tensor, first: int = first, last: int = last) -> Tensor:
        return tensor.reshape(1, -1)[:, first:last]

    def state_part(key: str, tensor: Tensor) -> Tensor:
        if key == "exp_avg_codes":
            return part(tensor, first * format.bits // 8, -(-last * format.bits // 8))
        if key == "exp_avg_scale":
            return tensor if format.tensor_wise else part(tensor, first // format.block_size, format.blocks(last))
        return part(tensor)

    state = {key: state_part(key, value) for key, value in _state_tensors(slot).items()}
    return Slot(part(slot.param), part(slot.grad), state, slot.index, slot.start + first, slot.row_pitch)


def _state_tensors(slot: Slot) -> dict[str, Tensor]:
    return {key: slot.state[key] for key in KEYS if key in slot.state}


def _tensors(slot: Slot) -> list[Tensor]:
    return [slot.param, slot.grad, *_state_tensors(slot).values()]


#: State that is laid out along the parameter, and so is cut with it.
KEYS = ("exp_avg", "exp_avg_codes", "exp_avg_scale", "param_rest")


def _is_matrix(tensor: Tensor, rows: int, columns: int) -> bool:
    """Whether (rows, columns) is a view. Only asked of tensors that have as many elements."""
    if tensor.numel() != rows * columns or tensor.dim() <= 1:
        return True
    try:
        tensor.view(rows, columns)
    except RuntimeError:
        return False
    return True
