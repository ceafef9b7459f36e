"""The device table: the description of some slots for kernels, and their cut into work items.

A table is made when slots are prepared. From call to call only gradients move; then two numbers per slot are
uploaded, or none. Uploads are asynchronous, from pinned memory, and may be captured in a graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lionbits_reference.spec import Plan, Slot

from .layout import even_blocks, walk
from .record import EVEN, Record

#: Captures, with gradients elsewhere each time, that may follow one another without an ordinary call in between.
CAPTURES = 32


class Detour(NamedTuple):
    """A slot with tensors that kernels cannot walk, and contiguous copies that they can."""

    slot: Slot
    copy: Slot
    grad: Tensor


class Table:
    """The slots of a plan as its kernels see them. It holds no gradient, and no slot but those of detours.

    Args:
        plan: of all slots.
        slots: on one device.
        grads: like those of the calls to come.
        block: elements of a row that make a block: the format's, or what kernels take where that has none.
        item: blocks that one program does at most.

    Attributes:
        slots: int64[k, fields of :class:`Record`], on the device.
        calls: int64[k, 2], on the device: the gradient's address, and whether it is aligned.
        items: int64[n, 3], on the device: slot, first block and end of what each program does.
    """

    def __init__(self, plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor], block: int, item: int) -> None:
        self._plan = plan
        pairs = list(zip(slots, grads, strict=True))
        self._detours = {j: _detour(plan, *pair) for j, pair in enumerate(pairs) if not _walkable(plan, *pair)}
        self._addresses: list[int] = []
        self._captured: dict[tuple[int, ...], Tensor] = {}  # pinned memory that replays read, by the addresses in it
        records: list[Record] = []
        items: list[tuple[int, int, int]] = []
        for j, (slot, grad) in enumerate(pairs):
            detour = self._detours.get(j)
            record, blocks = _record(plan, *((slot, grad) if detour is None else detour[1:]), block)
            records.append(record)
            items += _items(j, blocks, record.even_blocks, item)
        device = slots[0].param.device
        self.slots = torch.empty(len(records), len(Record._fields), dtype=torch.int64, device=device)
        self.items = torch.empty(len(items), 3, dtype=torch.int64, device=device)
        self.calls = torch.empty(len(records), 2, dtype=torch.int64, device=device)
        self._spare = self._pinned()  # of the captures to come
        self._streams: set[torch.cuda.Stream] = set()
        _upload(np.array(records, dtype=np.int64), self.slots)
        _upload(np.array(items, dtype=np.int64).reshape(-1, 3), self.items)

    def bind(self, grads: Sequence[Tensor]) -> None:
        """Set the gradients of a call; they have the strides of those that the table was made with.

        A captured graph uploads the addresses at each replay, and calls in between may need others. So a table that was
        captured uploads them at every call.

        Raises:
            RuntimeError: there were too many captures since a call that was not captured.
        """
        self._keep_for_stream()
        bound = list(grads)
        for j, detour in self._detours.items():
            _copy(detour.slot, detour.copy, self._plan)
            bound[j] = detour.grad.copy_(bound[j])
        addresses = [grad.data_ptr() for grad in bound]
        capturing = self.calls.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if capturing or self._captured or addresses != self._addresses:
            at = np.array(addresses, dtype=np.int64)
            values = np.stack((at, at % EVEN == 0), axis=1)
            if capturing:
                self._capture(tuple(addresses), values)
            else:
                _upload(values, self.calls)
                if self._captured and len(self._spare) < CAPTURES:
                    self._spare += self._pinned()
            self._addresses = addresses

    def _keep_for_stream(self) -> None:
        """Let none of the table's memory be used again before the current stream has done its work of now."""
        device = self.calls.device
        if device.type == "cuda" and (stream := torch.cuda.current_stream(device)) not in self._streams:
            self._streams.add(stream)
            copies = [
                one for _, copy, grad in self._detours.values() for one in (grad, copy.param, *copy.state.values())
            ]
            for tensor in (self.slots, self.calls, self.items, *copies):
                tensor.record_stream(stream)

    def _capture(self, addresses: tuple[int, ...], values: np.ndarray) -> None:
        """Upload the values at each replay, from pinned memory of before: none may be allocated in a capture."""
        if addresses not in self._captured:
            if not self._spare:
                raise RuntimeError(
                    f"a step was captured more than {CAPTURES} times, with gradients elsewhere each time. Take a step "
                    f"that is not captured before the next capture, or keep gradients where they are."
                )
            self._captured[addresses] = self._spare.pop().copy_(torch.from_numpy(values))
        self.calls.copy_(self._captured[addresses], non_blocking=True)

    def _pinned(self) -> list[Tensor]:
        """Return pinned memory for the ``calls`` of some captures; none on the CPU."""
        if self.calls.device.type == "cpu":
            return []
        shape = (CAPTURES, *self.calls.shape)
        return list(torch.empty(shape, dtype=torch.int64, device="cpu", pin_memory=True).unbind())

    def walked(self, slots: Sequence[Slot], grads: Sequence[Tensor]) -> tuple[list[Slot], list[Tensor]]:
        """Return what kernels touch of the slots and gradients of the table: those themselves, or their copies."""
        pairs = [
            (slot, grad) if (found := self._detours.get(j)) is None else found[1:]
            for j, (slot, grad) in enumerate(zip(slots, grads, strict=True))
        ]
        return [slot for slot, _ in pairs], [grad for _, grad in pairs]

    def release(self) -> None:
        """Copy kernels' results from contiguous copies to the tensors that kernels cannot walk."""
        for detour in self._detours.values():
            _copy(detour.copy, detour.slot, self._plan)


def _upload(values: np.ndarray, to: Tensor) -> None:
    """Upload the values, without waiting if the host's memory allows that."""
    host = torch.from_numpy(values)
    if to.device.type != "cpu":
        host = host.pin_memory()
    to.copy_(host, non_blocking=True)


def _walkable(plan: Plan, slot: Slot, grad: Tensor) -> bool:
    """True if kernels can walk all tensors of the slot and its gradient without a copy."""
    state = _state(plan, slot).values()
    signed = any(t.is_neg() for t in (slot.param, grad, *state))  # whose sign is not in their bytes
    return walk(plan, slot, grad) is not None and not signed and all(t.is_contiguous() for t in state)


def _detour(plan: Plan, slot: Slot, grad: Tensor) -> Detour:
    """Return contiguous copies of a slot and its gradient; they share no memory with the originals."""
    state = {key: torch.empty_like(t, memory_format=torch.contiguous_format) for key, t in _state(plan, slot).items()}
    param, copied = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (slot.param, grad))
    return Detour(slot, Slot(param, state, slot.index, slot.start, slot.pitch), copied)


def _copy(source: Slot, to: Slot, plan: Plan) -> None:
    to.param.copy_(source.param)
    for key, tensor in _state(plan, to).items():
        tensor.copy_(source.state[key])


def _state(plan: Plan, slot: Slot) -> dict[str, Tensor]:
    return {key: slot.state[key] for key in plan.state_spec(slot.param.shape)}


def _record(plan: Plan, slot: Slot, grad: Tensor, block: int) -> tuple[Record, int]:
    """Return the slot's row of the table, and its number of blocks."""
    found = walk(plan, slot, grad)
    assert found is not None
    state = _state(plan, slot)
    row_blocks = -(-found.columns // block)
    momentum = state["exp_avg_codes" if plan.format.quantised else "exp_avg"]
    record = Record(
        slot.param.data_ptr(),
        momentum.data_ptr(),
        state["exp_avg_scale"].data_ptr() if plan.format.quantised else 0,
        state["param_residual"].data_ptr() if "param_residual" in state else 0,
        found.columns,
        max(row_blocks, 1),
        even_blocks(plan, slot, found, block),
        slot.index,
        slot.start,
        slot.row_pitch,
        *found.param,
        *found.grad,
        found.middle,
        found.inner,
    )
    return record, found.rows * row_blocks


def _items(j: int, blocks: int, even: int, size: int) -> Iterable[tuple[int, int, int]]:
    """Yield runs of at most ``size`` blocks of slot ``j``; in each all blocks are even, or none."""
    for begin, end in ((0, even), (even, blocks)):
        for first in range(begin, end, size):
            yield j, first, min(first + size, end)
