"""The calls for parameters that are one row, of which every rank has a run: ranks share the blocks that cuts divide.

Blocks that are whole on a rank are updated as ever. The part of a divided block at either end of the run is a slot with
one scale, of which the largest momentum is given. One collective call of a step finds it, for all such blocks of all
parameters, and makes all scales known to all ranks: state then holds them whole, as that of one process does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lionbits import sharding, torch_private
from lionbits.paging import Call
from lionbits_reference import formats
from lionbits_reference.spec import Backend, Hyper, Plan, Prepared, Scalars, Slot

State = dict[str, Any]


class Span(NamedTuple):
    """Elements of a row: those from ``first`` up to ``last``."""

    first: int
    last: int


class Cuts(NamedTuple):
    """A run in three: a part of a block, whole blocks, a part of a block. Each may be empty."""

    head: Span
    blocks: Span
    tail: Span


def cuts(run: sharding.Run, block: int) -> Cuts:
    """Return where divided blocks of ``block`` elements end and begin. A short last block of the row may be whole."""
    first, last, size = run
    after_head = min(-(-first // block) * block, last)
    before_tail = last if last == size else max(last - last % block, after_head)
    return Cuts(Span(first, after_head), Span(after_head, before_tail), Span(before_tail, last))


def for_parts(plan: Plan) -> Plan:
    """Return the plan for parts of blocks: all of a slot has one scale."""
    return replace(plan, format=replace(plan.format, block_size=0))


class Part(NamedTuple):
    """One call: for some slots, a span of each.

    Attributes:
        prepared: by the backend.
        places: of the slots.
        at: the same, on the device.
        spans: elements of each slot, counted from its first.
        blocks: where each span begins among the blocks of all rows, on the device.
    """

    prepared: Prepared
    places: list[int]
    at: Tensor
    spans: list[Span]
    blocks: Tensor


class SharedBlocks:
    """The calls that update runs of rows.

    Args:
        backend: that updates them.
        plan: of all slots, with blocks.
        slots: contiguous. They may begin before the run, with zeros.
        runs: of the slots.
        grads: of the slots, like those to come.
        shard_group: the ranks that have parts of the rows.
    """

    def __init__(
        self,
        backend: Backend,
        plan: Plan,
        slots: Sequence[Slot],
        runs: Sequence[sharding.Run],
        grads: Sequence[Tensor],
        shard_group: sharding.ShardGroup | None,
    ) -> None:
        self._backend, self._format, self._shard_group = backend, plan.format, shard_group
        self._slots, self._device = slots, slots[0].param.device
        self._counts = [plan.format.blocks(run.size) for run in runs]
        self._begins = [sum(self._counts[:j]) for j in range(len(runs))]
        found = [cuts(run, plan.format.block_size) for run in runs]
        whole = torch.zeros(sum(self._counts), dtype=torch.bool)
        for begin, (_, (first, last), _) in zip(self._begins, found, strict=True):
            if last > first:
                whole[begin + first // plan.format.block_size : begin + plan.format.blocks(last)] = True
        self._is_whole = whole.to(self._device)
        self._whole = self._part(plan, [cut.blocks for cut in found], grads)
        divided = ([cut.head for cut in found], [cut.tail for cut in found])
        self._divided = [self._part(for_parts(plan), spans, grads) for spans in divided]
        del self._slots

    def calls(self, grads: Sequence[Tensor], *, writes: bool) -> Iterator[Call]:
        """Yield the calls of a pass that changes nothing. No slot is in a call twice."""
        assert not writes, "step() writes"
        for part in (self._whole, *self._divided):
            if part is not None:
                yield Call(part.prepared, _of_spans(part, grads), part.at)

    def step(self, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars, states: Sequence[State]) -> None:
        """Update all runs, and the scales of all rows. A collective call.

        Args:
            grads: of the slots.
            hyper, scalars: of the step.
            states: of the slots.
        """
        divided = [(part, _of_spans(part, grads)) for part in self._divided if part is not None]
        # of each block, where it is whole its scale, where it is divided its largest momentum on this rank
        found = torch.zeros(2, len(self._is_whole), dtype=torch.float32, device=self._device)
        scales, largest = found.unbind()
        for part, own in divided:
            largest[part.blocks] = self._backend.absmax(part.prepared, own, hyper, scalars.part(part.at))
        if self._whole is not None:
            own = _of_spans(self._whole, grads)
            self._backend.step(self._whole.prepared, own, hyper, scalars.part(self._whole.at))
        held = [state["exp_avg_scale"] for state in states]
        torch.where(self._is_whole, torch.cat([scale.view(-1) for scale in held]), scales, out=scales)
        bits = found.view(torch.int32)  # which order magnitudes, NaN as the largest
        sharding.total(bits.bitwise_and_(0x7FFFFFFF), self._shard_group, largest=True)
        scales = torch.maximum(scales, formats.block_scale(largest, self._format))
        for part, own in divided:
            numbers = replace(scalars.part(part.at), absmax=largest[part.blocks])
            self._backend.step(part.prepared, own, hyper, numbers)
        torch_private.copy_each(held, [row.view(1, -1) for row in scales.split(self._counts)])

    def settle(self) -> None:
        """Do nothing: no copy is pending."""

    def _part(self, plan: Plan, spans: Sequence[Span], grads: Sequence[Tensor]) -> Part | None:
        places = [j for j, span in enumerate(spans) if span.last > span.first]
        if not places:
            return None
        size = self._format.block_size
        blocks = [self._begins[j] + spans[j].first // size for j in places]
        within = [_within(self._slots[j], spans[j], size) for j in places]
        pieces = [
            _piece(plan, self._slots[j], span, spans[j].first // size) for j, span in zip(places, within, strict=True)
        ]
        at, of = (torch.tensor(numbers, dtype=torch.int64, device=self._device) for numbers in (places, blocks))
        part = Part(None, places, at, within, of)
        return part._replace(prepared=self._backend.prepare(plan, pieces, _of_spans(part, grads)))


def _within(slot: Slot, span: Span, size: int) -> Span:
    """Return a span in elements of its slot. A divided block at the beginning includes zeros before the run."""
    return Span(0 if span.first % size else span.first - slot.start, span.last - slot.start)


def _of_spans(part: Part, grads: Sequence[Tensor]) -> list[Tensor]:
    return [grads[j].reshape(-1)[first:last] for j, (first, last) in zip(part.places, part.spans, strict=True)]


def _piece(plan: Plan, slot: Slot, span: Span, block: int) -> Slot:
    """Return a slot of views of a span, in a format with blocks or of one block."""
    (first, last), format = span, plan.format
    state = {key: slot.state[key].view(-1)[first:last] for key in plan.state_spec(()) if key != "exp_avg_scale"}
    if format.bits < 8:
        packed = slot.state["exp_avg_codes"].view(1, -1)
        state["exp_avg_codes"] = packed[:, first * format.bits // 8 : -(-last * format.bits // 8)]
    count = 1 if format.tensor_wise else format.blocks(last - first)
    state["exp_avg_scale"] = slot.state["exp_avg_scale"].view(1, -1)[:, block : block + count]
    return Slot(slot.param.detach().view(-1)[first:last], state, slot.index, slot.start + first)
