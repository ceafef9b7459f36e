"""The property "cut rows equal whole ones": a row is cut inside its blocks, as shards of vectors and short rows are.

A part of a divided block is a slot with one scale. The caller gives it the largest momentum of the whole block, which
is the largest of what ``absmax`` finds in the parts, and stores the scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lionbits_reference import formats
from lionbits_reference.spec import Backend, Format, Plan, Slot

from . import bits, cases
from .cases import Call, Case
from .repro import CPU, repro_message


class _Piece(NamedTuple):
    """Slot ``owner``, or elements of its only row: whole blocks, or a part of the block ``divided``."""

    owner: int
    slot: Slot
    elements: slice | None = None
    divided: int | None = None


class _Part:
    """Pieces that one call updates: all that divide no block, or all that divide one."""

    def __init__(self, backend: Backend, plan: Plan, call: Call, pieces: Sequence[_Piece]) -> None:
        self.pieces, self._backend = pieces, backend
        self._owners = torch.tensor([piece.owner for piece in pieces], device=call.scalars.lr.device)
        self._prepared = backend.prepare(plan, [piece.slot for piece in pieces], self._grads(call))

    def step(self, call: Call) -> None:
        """Update the pieces; parts of blocks with the largest momentum of the whole block, whose scale is stored."""
        numbers, grads = call.scalars.part(self._owners), self._grads(call)
        if self.pieces[0].divided is None:
            self._backend.step(self._prepared, grads, call.case.hyper, numbers)
            return
        blocks = [(piece.owner, piece.divided) for piece in self.pieces]
        largest: dict[tuple[int, int | None], Tensor] = {}
        found = self._backend.absmax(self._prepared, grads, call.case.hyper, numbers)
        for block, absmax in zip(blocks, found.unbind(), strict=True):
            largest[block] = torch.maximum(largest.get(block, absmax), absmax)
        given = torch.stack([largest[block] for block in blocks])
        self._backend.step(self._prepared, grads, call.case.hyper, replace(numbers, absmax=given))
        for (owner, divided), absmax in largest.items():
            scale = formats.block_scale(absmax, call.case.plan.format)
            call.slots[owner].state["exp_avg_scale"][:, divided] = scale

    def _grads(self, call: Call) -> list[Tensor]:
        grads = [(call.grads[piece.owner], piece.elements) for piece in self.pieces]
        return [grad if elements is None else grad.reshape(-1)[elements] for grad, elements in grads]


def cut_rows_equal_whole(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """A parameter that is one row, cut at any even element where a byte of codes begins, gets what the whole gets."""
    plan = case.plan
    if plan.format.tensor_wise:
        return  # shards_equal_whole gives the largest momentum of a tensor
    whole, cut = cases.run(backend, case, device), cases.build(case, device)
    pieces = [piece for j, slot in enumerate(cut.slots) for piece in _pieces(case, slot, j)]
    blocks = [piece for piece in pieces if piece.divided is None]
    divided = [piece for piece in pieces if piece.divided is not None]
    one_scale = replace(plan, format=replace(plan.format, block_size=0)) if divided else plan
    parts = [_Part(backend, served, cut, some) for served, some in ((one_scale, divided), (plan, blocks)) if some]
    for i in range(case.updates):
        cases.renew(cut, i)
        for part in parts:
            part.step(cut)
        cut.scalars.step.add_(1)
    bits.require_equal(cut.results(), whole.results(), repro_message(backend, "cut_rows_equal_whole", case))


def _pieces(case: Case, slot: Slot, j: int) -> list[_Piece]:
    format, count = case.plan.format, slot.param.numel()
    if not format.quantised or slot.matrix[0] != 1 or slot.pitch is not None or not slot.param.is_contiguous():
        return [_Piece(j, slot)]
    unit = max(2, 8 // format.bits)
    generator = torch.Generator().manual_seed(case.tensors[j].seed)
    cuts = sorted(unit * int(torch.randint(0, count // unit + 1, (), generator=generator)) for _ in range(3))
    runs = pairwise([0, *cuts, count])
    return [_piece(format, slot, j, *span) for run in runs for span in _spans(*run, count, format.block_size)]


def _spans(first: int, last: int, count: int, block: int) -> Iterator[tuple[int, int, bool]]:
    """Cut a run where divided blocks end and begin: first and last element of each span, and whether it divides one."""
    inside = {edge for edge in (-(-first // block) * block, last // block * block) if first < edge < last}
    for begin, end in pairwise(sorted({first, last, *inside})):
        yield begin, end, begin % block != 0 or (end % block != 0 and end != count)


def _piece(format: Format, slot: Slot, owner: int, first: int, last: int, divides: bool) -> _Piece:
    block = first // format.block_size
    blocks = slice(block, block + 1 if divides else format.blocks(last))
    state = {key: value.view(-1)[first:last] for key, value in slot.state.items() if key == "param_residual"}
    codes = slot.state["exp_avg_codes"].view(-1)[first * format.bits // 8 : -(-last * format.bits // 8)]
    state["exp_avg_codes"] = codes if format.bits == 8 else codes.view(1, -1)
    state["exp_avg_scale"] = slot.state["exp_avg_scale"].view(1, -1)[:, blocks]
    part = Slot(slot.param.view(-1)[first:last], state, slot.index, slot.start + first)
    return _Piece(owner, part, slice(first, last), block if divides else None)
