"""For programs that execute kernels on a CPU: the memory that kernels may touch, and the order of their threads."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lionbits_reference.spec import Plan, Slot

from .table import Table


class Extent(NamedTuple):
    """The bytes of a tensor, from its first element to its last."""

    address: int
    bytes: int
    name: str


def extent(tensor: Tensor, name: str) -> Extent:
    """Return the bytes of a tensor; between its elements there may be others."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return Extent(tensor.data_ptr(), (reach + 1) * tensor.element_size() if tensor.numel() else 0, name)


def order(table: Table) -> int:
    """Return one seed for equal shapes, so that failures repeat; different shapes get many orders of threads."""
    sizes = table.slots[:, 4:10].contiguous()  # columns ... pitch: no address
    return zlib.crc32(table.items.numpy().tobytes(), zlib.crc32(sizes.numpy().tobytes()))


class Extents:
    """The extents of slots and of their gradients, without the tensors themselves.

    Args:
        table: of the slots.
        plan, slots, grads: that it was made from.
    """

    def __init__(self, table: Table, plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]) -> None:
        self._fixed: list[Extent] = []
        self._grads: list[int] = []
        for j, (slot, grad) in enumerate(zip(*table.walked(slots, grads), strict=True)):
            state = {key: slot.state[key] for key in plan.state_spec(slot.param.shape)}
            self._fixed += [
                extent(tensor, f"{name} of slot {j}") for name, tensor in {"param": slot.param, **state}.items()
            ]
            self._grads.append(extent(grad, "").bytes)

    def of_launch(self, table: Table, arguments: Sequence[object]) -> list[Extent]:
        """Return all that a launch may touch: slots, bound gradients, the table, tensors among the arguments."""
        starts = table.calls[:, 0].tolist()
        grads = [
            Extent(at, size, f"gradient of slot {j}")
            for j, (at, size) in enumerate(zip(starts, self._grads, strict=True))
        ]
        tables = [
            extent(tensor, f"the table's {name}")
            for name, tensor in (("slots", table.slots), ("calls", table.calls), ("items", table.items))
        ]
        others = [
            extent(value, f"argument {i} after the table")
            for i, value in enumerate(arguments)
            if isinstance(value, Tensor)
        ]
        return [*self._fixed, *grads, *tables, *others]
