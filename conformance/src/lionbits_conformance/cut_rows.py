"""The property "cut rows equal whole ones": a row is cut inside its blocks, as shards of vectors and short rows are.

A part of a divided block is a slot with one scale. The caller gives it the largest momentum of the whole block, which
is the largest of what ``absmax`` finds in the parts, and stores the scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lionbits_reference import formats
from lionbits_reference.spec import Backend, Plan, Prepared, Slot

from . import bits, cases
from .cases import Call, Case
from .repro import CPU, repro_message


class _Piece(NamedTuple):
    """A slot, or elements of its only row: whole blocks, or a part of the block ``divided``."""

    at: slice
    plan: Plan
    slot: Slot
    elements: slice | None = None
    divided: int | None = None

    def grad(self, call: Call) -> list[Tensor]:
        whole = call.grads[self.at.start]
        return [whole if self.elements is None else whole.reshape(-1)[self.elements]]


def cut_rows_equal_whole(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """A parameter that is one row, cut at any even element where a byte of codes begins, gets what the whole gets."""
    if case.plan.format.tensor_wise:
        return  # shards_equal_whole gives the largest momentum of a tensor
    whole, cut = cases.run(backend, case, device), cases.build(case, device)
    pieces = [piece for j, slot in enumerate(cut.slots) for piece in _pieces(case, slot, j)]
    made = [(piece, backend.prepare(piece.plan, [piece.slot], piece.grad(cut))) for piece in pieces]
    for i in range(case.updates):
        cases.renew(cut, i)
        _step(backend, case, cut, made)
        cut.scalars.step.add_(1)
    bits.require_equal(cut.results(), whole.results(), repro_message(backend, "cut_rows_equal_whole", case))


def _step(backend: Backend, case: Case, call: Call, made: list[tuple[_Piece, Prepared]]) -> None:
    largest: dict[tuple[int, int], Tensor] = {}
    for piece, prepared in made:
        if piece.divided is not None:
            found = backend.absmax(prepared, piece.grad(call), case.hyper, call.scalars.part(piece.at))
            block = piece.at.start, piece.divided
            largest[block] = torch.maximum(largest.get(block, found), found)
    for piece, prepared in made:
        numbers = call.scalars.part(piece.at)
        if piece.divided is not None:
            numbers = replace(numbers, absmax=largest[piece.at.start, piece.divided])
        backend.step(prepared, piece.grad(call), case.hyper, numbers)
    for (j, divided), absmax in largest.items():
        call.slots[j].state["exp_avg_scale"][:, divided] = formats.block_scale(absmax, case.plan.format)


def _pieces(case: Case, slot: Slot, j: int) -> list[_Piece]:
    format, count, at = case.plan.format, slot.param.numel(), slice(j, j + 1)
    if not format.quantised or slot.matrix[0] != 1 or slot.pitch is not None or not slot.param.is_contiguous():
        return [_Piece(at, case.plan, slot)]
    unit = max(2, 8 // format.bits)
    generator = torch.Generator().manual_seed(case.tensors[j].seed)
    cuts = sorted(unit * int(torch.randint(0, count // unit + 1, (), generator=generator)) for _ in range(2))
    runs = pairwise([0, *cuts, count])
    return [_piece(case.plan, slot, at, *span) for run in runs for span in _spans(*run, count, format.block_size)]


def _spans(first: int, last: int, count: int, block: int) -> Iterator[tuple[int, int, bool]]:
    """Cut a run where divided blocks end and begin: first and last element of each span, and whether it divides one."""
    inside = {edge for edge in (-(-first // block) * block, last // block * block) if first < edge < last}
    for begin, end in pairwise(sorted({first, last, *inside})):
        yield begin, end, begin % block != 0 or (end % block != 0 and end != count)


def _piece(plan: Plan, slot: Slot, at: slice, first: int, last: int, divides: bool) -> _Piece:
    format = plan.format
    block = first // format.block_size
    blocks = slice(block, block + 1 if divides else format.blocks(last))
    bytes_ = slice(first * format.bits // 8, -(-last * format.bits // 8))
    state = {key: value.view(-1)[first:last] for key, value in slot.state.items() if key == "param_residual"}
    codes = slot.state["exp_avg_codes"].view(-1)[bytes_]
    state["exp_avg_codes"] = codes if format.bits == 8 else codes.view(1, -1)
    state["exp_avg_scale"] = slot.state["exp_avg_scale"].view(1, -1)[:, blocks]
    part = Slot(slot.param.view(-1)[first:last], state, slot.index, slot.start + first)
    served = replace(plan, format=replace(format, block_size=0)) if divides else plan
    return _Piece(at, served, part, slice(first, last), block if divides else None)
