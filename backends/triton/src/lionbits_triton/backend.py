"""The backend ``triton``: one launch for all slots of a call, equal to the reference bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lionbits_reference.spec import Format, Hyper, Plan, Scalars, Slot
from lionbits_table import Table, codec

from . import execute, kernels
from .launch import Prepared, cut, launch, obstacle
from .lion import INTERPRETED

name = "triton"


def supports(plan: Plan, device: torch.device) -> str:
    """Return an empty string, or the reason why not: all plans are served, on GPUs or, for tests, on the CPU."""
    del plan
    if (arch := execute.architecture()) and INTERPRETED.value:
        return f"TRITON_INTERPRET=1 and {execute.ENVIRONMENT}={arch} are both set: set one of them"
    if INTERPRETED.value:
        return "" if device.type == "cpu" else "TRITON_INTERPRET=1 is set: Triton's interpreter serves CPU tensors only"
    if arch:
        if device.type == "cpu":
            return execute.obstacle()
        return (
            f"{execute.ENVIRONMENT}={arch} is set: the compiled kernels are executed on the CPU, for CPU tensors only"
        )
    if device.type != "cuda":
        return (
            f"Triton kernels run on CUDA devices, not on {device.type} (its interpreter does: set TRITON_INTERPRET=1)"
        )
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU: it is built without CUDA, or there is no driver"
    return obstacle(torch.cuda.current_device() if device.index is None else device.index)


def prepare(plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]) -> Prepared:
    """Choose the cuts and build the device table of the slots."""
    found = cut(plan, slots)
    table = Table(plan, slots, grads, found.even.block, found.item)
    return Prepared(found, table, execute.extents(table, plan, slots, grads))


def step(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> None:
    """Update all slots in one launch."""
    prepared.table.bind(grads)
    launch(
        kernels.step_kernel,
        prepared,
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
        EVEN=prepared.cut.even,
        UNEVEN=prepared.cut.uneven,
    )
    prepared.table.release()


def aligned(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> Tensor:
    """Count the aligned elements of each slot in one launch."""
    counts = torch.zeros(len(grads), dtype=torch.int64, device=scalars.lr.device)
    _count(prepared, grads, hyper, scalars, counts, ALIGNED=True)
    return counts


def absmax(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> Tensor:
    """Return the largest new magnitude of momentum of each slot in one launch."""
    bits = torch.zeros(len(grads), dtype=torch.int32, device=scalars.lr.device)
    _count(prepared, grads, hyper, scalars, bits, ALIGNED=False)
    return bits.view(torch.float32)


def encode(format: Format, momentum: Tensor) -> dict[str, Tensor]:
    """State tensors of ``format`` for a float32 ``momentum`` of any shape, rounded to nearest."""

    def launched(plan: Plan, slot: Slot, grad: Tensor, largest: Tensor) -> None:
        one = _bound(plan, slot, grad)
        launch(kernels.encode_kernel, one, largest, UNEVEN=one.cut.uneven)

    return codec.encode(format, momentum, launched)


def decode(format: Format, state: Mapping[str, Any], shape: Sequence[int]) -> Tensor:
    """float32 momentum of ``shape``, contiguous."""

    def launched(plan: Plan, slot: Slot) -> None:
        one = _bound(plan, slot, slot.param)
        launch(kernels.decode_kernel, one, UNEVEN=one.cut.uneven)

    return codec.decode(format, state, shape, launched)


def _bound(plan: Plan, slot: Slot, grad: Tensor) -> Prepared:
    """Prepare one slot for a kernel."""
    one = prepare(plan, [slot], [grad])
    one.table.bind([grad])
    return one


def _count(
    prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars, found: Tensor, **kind: bool
) -> None:
    prepared.table.bind(grads)
    variants = {"EVEN": prepared.cut.even, "UNEVEN": prepared.cut.uneven}
    launch(kernels.count_kernel, prepared, scalars.grad_scale, found, *_betas(hyper), **variants, **kind)


def _betas(hyper: Hyper) -> tuple[float, float, float, float]:
    return hyper.b1, hyper.one_minus_b1, hyper.b2, hyper.one_minus_b2
