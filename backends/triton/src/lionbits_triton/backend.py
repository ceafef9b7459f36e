"""The backend ``triton``: one launch for all slots of a call, equal to the reference bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lionbits_reference.spec import Batch, Format, Hyper, Plan, Scalars, Slot
from lionbits_table import Table, codec

from . import kernels
from .launch import Work, cut, launch
from .lion import INTERPRETED

name = "triton"


def supports(plan: Plan, device: torch.device) -> str:
    """Empty, or the reason why not: all plans are served, on CUDA devices, or on the CPU by Triton's interpreter."""
    del plan
    if INTERPRETED.value:
        return "" if device.type == "cpu" else "TRITON_INTERPRET=1 is set: Triton's interpreter serves CPU tensors only"
    if device.type != "cuda":
        return (
            f"Triton kernels run on CUDA devices, not on {device.type} (its interpreter does: set TRITON_INTERPRET=1)"
        )
    return ""


def step(plan: Plan, slots: Sequence[Slot], hyper: Hyper, scalars: Scalars) -> None:
    """See :meth:`lionbits_reference.spec.Backend.step`."""
    if not slots:
        return
    work = _work(plan, slots)
    launch(
        kernels.step_kernel,
        work,
        scalars.lr,
        scalars.keep,
        scalars.grad_scale,
        scalars.step,
        scalars.lr if scalars.absmax is None else scalars.absmax,
        scalars.skipped,
        *_betas(hyper),
        hyper.seed & 0xFFFFFFFF,
        hyper.seed >> 32,
        int(hyper.rounding == "stochastic"),
        int(hyper.rounding == "nearest"),
        EVEN=work.cut.even,
        UNEVEN=work.cut.uneven,
    )
    work.table.release(slots)


def aligned(plan: Plan, slots: Sequence[Slot], hyper: Hyper, scalars: Scalars) -> Tensor:
    """See :meth:`lionbits_reference.spec.Backend.aligned`."""
    counts = torch.zeros(len(slots), dtype=torch.int64, device=scalars.lr.device)
    _count(plan, slots, hyper, scalars, counts, ALIGNED=True)
    return counts


def absmax(plan: Plan, slots: Sequence[Slot], hyper: Hyper, scalars: Scalars) -> Tensor:
    """See :meth:`lionbits_reference.spec.Backend.absmax`."""
    bits = torch.zeros(len(slots), dtype=torch.int32, device=scalars.lr.device)
    _count(plan, slots, hyper, scalars, bits, ALIGNED=False)
    return bits.view(torch.float32)


def encode(format: Format, momentum: Tensor) -> dict[str, Tensor]:
    """State tensors of ``format`` for a float32 ``momentum`` of any shape, rounded to nearest."""

    def launched(plan: Plan, slot: Slot, largest: Tensor) -> None:
        work = _work(plan, [slot])
        launch(kernels.encode_kernel, work, largest, UNEVEN=work.cut.uneven)

    return codec.encode(format, momentum, launched)


def decode(format: Format, state: Mapping[str, Any], shape: Sequence[int]) -> Tensor:
    """float32 momentum of ``shape``, contiguous."""

    def launched(plan: Plan, slot: Slot) -> None:
        work = _work(plan, [slot])
        launch(kernels.decode_kernel, work, UNEVEN=work.cut.uneven)

    return codec.decode(format, state, shape, launched)


def _work(plan: Plan, slots: Sequence[Slot]) -> Work:
    """The slots with the gradients that they have now; a batch keeps the table that was made for it."""
    kept = slots.memo if isinstance(slots, Batch) else {}
    work: Work | None = kept.get(name)
    if work is None:
        found = cut(plan, slots)
        work = kept[name] = Work(found, Table(plan, slots, found.even.block, found.item))
    work.table.bind(slots)
    return work


def _count(plan: Plan, slots: Sequence[Slot], hyper: Hyper, scalars: Scalars, found: Tensor, **kind: bool) -> None:
    if not slots:
        return
    work = _work(plan, slots)
    paths = {"EVEN": work.cut.even, "UNEVEN": work.cut.uneven}
    launch(kernels.count_kernel, work, scalars.grad_scale, found, *_betas(hyper), **paths, **kind)


def _betas(hyper: Hyper) -> tuple[float, float, float, float]:
    return hyper.b1, hyper.one_minus_b1, hyper.b2, hyper.one_minus_b2
