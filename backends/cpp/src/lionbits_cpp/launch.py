"""Calls of the library: the slot table, and the structs that kernels read, by ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lionbits_reference.spec import CAUTIONS, PARAM_DTYPES, PARAM_ROUNDINGS, Format, Hyper, Plan, Scalars, Slot
from lionbits_table import Table

from . import library

#: Elements of a row that are taken together where the format has no blocks: ``CHUNK`` of ``table.hpp``.
PLAIN_BLOCK = 1024

#: Elements of an item, about. A thread takes items one after the other.
ITEM = 1 << 15

#: Elements that are worth a thread of their own.
WORTH_A_THREAD = 1 << 15


class PlanNumbers(ctypes.Structure):
    """``struct Plan`` of ``table.hpp``."""

    _fields_ = [
        *((key, ctypes.c_int32) for key in ("param_dtype", "grad_dtype", "quantised", "bits", "shift", "largest_code")),
        ("top", ctypes.c_float),
        ("magnitude", ctypes.c_uint32),
        ("up", ctypes.c_int32),
        *((key, ctypes.c_int32) for key in ("tensor_wise", "block", "caution", "param_rounding", "master_bits")),
        ("skip", ctypes.c_int32),
    ]


class TableAddresses(ctypes.Structure):
    """``struct Table`` of ``kernels.cpp``."""

    _fields_ = [(key, ctypes.c_void_p) for key in ("slots", "calls", "items")] + [("count", ctypes.c_int64)]


class HyperNumbers(ctypes.Structure):
    """``struct Hyper`` of ``kernels.cpp``."""

    _fields_ = [
        *((key, ctypes.c_float) for key in ("b1", "one_minus_b1", "b2", "one_minus_b2")),
        ("seed", ctypes.c_uint64),
        ("rounding", ctypes.c_int32),
    ]


class ScalarAddresses(ctypes.Structure):
    """``struct Scalars`` of ``kernels.cpp``."""

    _fields_ = [(key, ctypes.c_void_p) for key in ("lr", "keep", "grad_scale", "step", "absmax", "skipped")]


class Prepared(NamedTuple):
    """The slot table, and what a call hands over of it and of the plan."""

    table: Table
    numbers: PlanNumbers
    addresses: TableAddresses
    elements: int

    @classmethod
    def of(cls, plan: Plan, table: Table) -> Prepared:
        """The table of a plan's slots, ready to be called with."""
        items = table.items
        addresses = TableAddresses(table.slots.data_ptr(), table.calls.data_ptr(), items.data_ptr(), len(items))
        blocks = int((items[:, 2] - items[:, 1]).sum())
        return cls(table, plan_numbers(plan), addresses, blocks * block(plan))


def block(plan: Plan) -> int:
    """Elements of a row that make a block."""
    return plan.format.block_size or PLAIN_BLOCK


def table(plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]) -> Table:
    """The slot table, cut into items."""
    return Table(plan, slots, grads, block(plan), max(ITEM // block(plan), 1))


def plan_numbers(plan: Plan) -> PlanNumbers:
    """A plan as the library reads it."""
    format = plan.format if plan.format.quantised else Format.of(8)  # any will do, where there are no codes
    return PlanNumbers(
        *(PARAM_DTYPES.index(dtype) for dtype in (plan.param_dtype, plan.grad_dtype)),
        int(plan.format.quantised),
        *(format.bits, format.shift, format.largest_code, format.top),
        format.largest_code << (8 - format.bits),
        format.shift - (8 - format.bits),
        int(plan.format.tensor_wise),
        block(plan),
        CAUTIONS.index(plan.caution),
        PARAM_ROUNDINGS.index(plan.param_rounding),
        plan.master_bits,
        int(plan.nonfinite == "skip"),
    )


def hyper_numbers(hyper: Hyper) -> HyperNumbers:
    """The numbers that all slots of a call share."""
    betas = hyper.b1, hyper.one_minus_b1, hyper.b2, hyper.one_minus_b2
    return HyperNumbers(*betas, hyper.seed, PARAM_ROUNDINGS.index(hyper.rounding))


def scalar_addresses(scalars: Scalars) -> ScalarAddresses:
    """Where the numbers of each slot are."""
    absmax = scalars.absmax
    return ScalarAddresses(
        *(t.data_ptr() for t in (scalars.lr, scalars.keep, scalars.grad_scale, scalars.step)),
        None if absmax is None else absmax.data_ptr(),
        scalars.skipped.data_ptr(),
    )


def call(function: str, prepared: Prepared, *arguments: Any) -> None:
    """Call a function of the library for all items, on as many threads as torch has.

    Args:
        function: its name.
        prepared: the slots.
        arguments: what follows the table; tensors stand for their addresses, structs for theirs.
    """
    if prepared.addresses.count == 0:
        return
    threads = max(min(torch.get_num_threads(), prepared.elements // WORTH_A_THREAD), 1)
    values = [ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else ctypes.byref(x) for x in arguments]
    library.load()[function](ctypes.byref(prepared.numbers), ctypes.byref(prepared.addresses), *values, threads)
