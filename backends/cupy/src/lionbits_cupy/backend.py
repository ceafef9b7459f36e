"""The backend ``cupy``: one launch for all slots of a call, equal to the reference bit for bit."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lionbits_reference.spec import PARAM_ROUNDINGS, Format, Hyper, Plan, Scalars, Slot
from lionbits_table import codec

from . import build, emulate
from .launch import Prepared, architecture, launch, table

name = "cupy"

#: The oldest architecture that is served: Turing.
OLDEST = 75


def supports(plan: Plan, device: torch.device) -> str:
    """Return an empty string, or the reason why not: all plans are served, on CUDA from Turing on, or emulated."""
    del plan
    if device.type == "cpu":
        return emulate.obstacle()
    if device.type != "cuda":
        return f"CUDA kernels run on CUDA devices, not on {device.type}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built {'for ROCm' if torch.version.hip else 'without CUDA'}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device, or no driver"
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed: pip install cupy-cuda13x, or cupy-cuda12x for CUDA 12"
    found = architecture(torch.cuda.current_device() if device.index is None else device.index)
    if found < OLDEST:
        return f"CUDA kernels are built for compute capability 7.5 and up; {device} has {found / 10}"
    return build.obstacle(found)


def prepare(plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]) -> Prepared:
    """Build the device table of the slots."""
    made = table(plan, slots, grads)
    return Prepared(plan, made, emulate.extents(made, plan, slots, grads))


def step(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> None:
    """Update all slots in one launch."""
    prepared.table.bind(grads)
    launch(
        "step_kernel",
        prepared,
        scalars.lr,
        scalars.keep,
        scalars.grad_scale,
        scalars.step,
        scalars.lr if scalars.absmax is None else scalars.absmax,
        scalars.skipped,
        *_betas(hyper),
        np.uint32(hyper.seed & 0xFFFFFFFF),
        np.uint32(hyper.seed >> 32),
        np.int32(PARAM_ROUNDINGS.index(hyper.rounding)),
    )
    prepared.table.release()


def aligned(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> Tensor:
    """Count the aligned elements of each slot in one launch."""
    counts = torch.zeros(len(grads), dtype=torch.int64, device=scalars.lr.device)
    _count(prepared, grads, hyper, scalars, counts, 1)
    return counts


def absmax(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> Tensor:
    """Return the largest new magnitude of momentum of each slot in one launch."""
    bits = torch.zeros(len(grads), dtype=torch.int32, device=scalars.lr.device)
    _count(prepared, grads, hyper, scalars, bits, 0)
    return bits.view(torch.float32)


def encode(format: Format, momentum: Tensor) -> dict[str, Tensor]:
    """State tensors of ``format`` for a float32 ``momentum`` of any shape, rounded to nearest."""

    def launched(plan: Plan, slot: Slot, grad: Tensor, largest: Tensor) -> None:
        launch("encode_kernel", _bound(plan, slot, grad), largest)

    return codec.encode(format, momentum, launched)


def decode(format: Format, state: Mapping[str, Any], shape: Sequence[int]) -> Tensor:
    """float32 momentum of ``shape``, contiguous."""

    def launched(plan: Plan, slot: Slot) -> None:
        launch("decode_kernel", _bound(plan, slot, slot.param))

    return codec.decode(format, state, shape, launched)


def _bound(plan: Plan, slot: Slot, grad: Tensor) -> Prepared:
    """Prepare one slot for a kernel."""
    one = prepare(plan, [slot], [grad])
    one.table.bind([grad])
    return one


def _count(
    prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars, found: Tensor, aligned: int
) -> None:
    prepared.table.bind(grads)
    launch("count_kernel", prepared, scalars.grad_scale, found, *_betas(hyper), np.int32(aligned))


def _betas(hyper: Hyper) -> tuple[np.float32, ...]:
    return tuple(map(np.float32, (hyper.b1, hyper.one_minus_b1, hyper.b2, hyper.one_minus_b2)))
