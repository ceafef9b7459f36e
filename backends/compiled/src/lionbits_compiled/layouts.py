"""How slots become matrices: rows and blocks, pieces that lie ready, pieces that have to be gathered.

Most of a model is large tensors of whole blocks: they are matrices already, cut into runs so that what is computed on
the way stays in the cache. Everything else is short rows, odd strides, thousands of small tensors, or parameters of
another dtype than their gradients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lionbits_reference.spec import Plan

from .bound import BoundSlot

#: Elements of a row where the format has no blocks: of long slots, of small ones, and of many short rows.
LONG_ROW, ROW, SHORT_ROW = 4096, 128, 32

#: Elements of a matrix: where it lies; where it lies in codes, as short rows take memory for what each has as a whole;
#: and all in scratch.
LARGEST, LARGEST_IN_CODES, LARGEST_GATHERED = 1 << 26, 1 << 24, 1 << 18

#: Slots of fewer elements are gathered with others: calls cost more than copies.
SMALL = 1 << 15

#: Fewer tensors than these of one size, or larger ones, are copied as fast one by one as all at once.
#: Up to so many elements lionbits makes the momentum of one shape as one tensor, too (lionbits/paging/colocated.py).
FEW, LARGE = 16, 1024


class Layout(NamedTuple):
    """A slot as rows of columns, joined to one row where that changes nothing, and cut into blocks."""

    rows: int
    columns: int
    width: int  # elements of a block

    @property
    def height(self) -> int:
        """Blocks, the short ones at the ends of rows included."""
        return self.rows * -(-self.columns // self.width)


def layout(plan: Plan, slot: BoundSlot) -> Layout:
    """How the slot becomes a matrix."""
    format = plan.format
    rows, columns = slot.matrix
    block = _block(plan, columns)
    torn = format.quantised and (columns * format.bits % 8 or (block and columns % block))
    placed = format.quantised or plan.draws_for_param
    if not torn and (not placed or slot.row_pitch == columns):
        rows, columns = 1, rows * columns
    plain = SHORT_ROW if rows > 1 else ROW if columns < SMALL else LONG_ROW
    return Layout(rows, columns, block or plain)


def same_shape_batches(plan: Plan, slots: Sequence[BoundSlot]) -> set[torch.Size]:
    """Small shapes that many of the slots have. A row of theirs is one of them, if nothing depends on columns."""
    if plan.format.quantised or plan.draws_for_param:
        return set()
    shapes = Counter(slot.param.shape for slot in slots)
    return {shape for shape, count in shapes.items() if count >= FEW and 1 < shape.numel() <= LARGE}


def are_rows(tensors: Sequence[Tensor], shape: Sequence[int]) -> bool:
    """Whether they are, one behind the other where they lie, a matrix of this shape with a row for each."""
    first = tensors[0]
    storage, begin, pitch = first.untyped_storage().data_ptr(), first.data_ptr(), shape[1] * first.itemsize
    return len(tensors) == shape[0] and all(
        tensor.data_ptr() == begin + row * pitch
        and tensor.nbytes == pitch
        and tensor.is_contiguous()
        and tensor.untyped_storage().data_ptr() == storage
        for row, tensor in enumerate(tensors)
    )


def _block(plan: Plan, columns: int) -> int:
    """Elements of a block; where a row is a short one, those of the row, if rows can be matrices so."""
    block = plan.format.block_size
    return columns if columns % 32 == 0 and 0 < columns < block else block


def parts(plan: Plan, slot: BoundSlot) -> Iterator[BoundSlot]:
    """The slot in pieces, each of which lies ready or is little enough to be gathered."""
    rows, columns, width = layout(plan, slot)
    if rows > 1 or not all(tensor.is_contiguous() for tensor in _tensors(plan, slot)):
        fill = -columns % width + columns
        yield from slot.cut(plan.format, max(LARGEST_GATHERED * columns // max(fill, 1) // 4096, 1) * 4096)
        return
    if width != (plan.format.block_size or width):  # rows that are short blocks
        held = slot.matrix[0]
        size = LARGEST_IN_CODES if is_zero_copy(plan, slot) else LARGEST_GATHERED
        step = size // width // 8 * 8  # 8: alignment
        for first in range(0, held, step):
            yield slot if held <= step else slot.rows(plan.format, first, min(first + step, held))
        return
    whole = columns - columns % width
    size = _largest(plan)
    if not is_zero_copy(plan, slot.columns(plan.format, 0, whole)):
        size = LARGEST_GATHERED
    for first in range(0, whole, size):
        yield slot.columns(plan.format, first, min(first + size, whole))
    if whole < columns:
        yield slot.columns(plan.format, whole, columns)


def crosses_2_33(slot: BoundSlot) -> bool:
    """Whether its pairs' numbers do not all have the same upper half. A row of a matrix has to have one."""
    rows, columns = slot.matrix
    first = slot.start // 2
    last = first + (rows - 1) * (slot.row_pitch // 2) + (columns - 1) // 2
    return first >> 32 != last >> 32


class Whole(NamedTuple):
    """What is known for all calls to come of a slot that is one part and lies ready."""

    layout: Layout
    storages: frozenset[int]  # addresses; not the gradient's

    def takes(self, grad: Tensor) -> bool:
        """Whether it lies ready with this gradient too, which has the strides of the first."""
        return _is_placed(grad) and not self.storages.intersection(_storages([grad]))


def whole(plan: Plan, slot: BoundSlot) -> Whole | None:
    """What to keep of the slot, or None if it has to be cut or gathered."""
    found = layout(plan, slot)
    if found.columns > _largest(plan) or crosses_2_33(slot):
        return None
    return Whole(found, frozenset(_storages(_tensors(plan, slot)[1:]))) if is_zero_copy(plan, slot) else None


def is_zero_copy(plan: Plan, slot: BoundSlot) -> bool:
    """Whether the slot is a matrix where it lies, and its parameter takes no more than rounding to nearest."""
    rows, columns, width = layout(plan, slot)
    tensors = _tensors(plan, slot)
    return (
        plan.param_rounding == "nearest"
        and slot.param.dtype == slot.grad.dtype
        and rows == 1
        and columns % width == 0
        and columns > width  # torch makes one row a case of its own
        and all(tensor.is_contiguous() and _is_placed(tensor) for tensor in tensors)
        and len(set(_storages(tensors))) == len(tensors)
    )


def state_keys(plan: Plan) -> list[str]:
    """State that has a part for each row. One scale for a whole tensor is a number of its slot."""
    return [key for key in plan.state_spec(()) if not (key == "exp_avg_scale" and plan.format.tensor_wise)]


def _largest(plan: Plan) -> int:
    """Elements of a matrix where it lies."""
    return LARGEST_IN_CODES if plan.format.quantised else LARGEST


def _tensors(plan: Plan, slot: BoundSlot) -> list[Tensor]:
    return [slot.grad, slot.param, *(slot.state[key] for key in state_keys(plan))]


def _is_placed(tensor: Tensor) -> bool:
    """Whether it begins where wider numbers may."""
    return tensor.data_ptr() % 8 == 0 and tensor.storage_offset() % 8 == 0


def _storages(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.untyped_storage().data_ptr() for tensor in tensors]
