"""The CUDA sources, and the constants by which they specialise on a plan."""

from __future__ import annotations

from pathlib import Path

from lionbits_reference.spec import CAUTIONS, PARAM_DTYPES, PARAM_ROUNDINGS, Format, Plan

from .build import Source

FOLDER = Path(__file__).parent / "cuda"
KERNELS = "kernels.cu"

#: Elements of a row that kernels take together where the format has no blocks.
PLAIN_BLOCK = 256

#: Elements of a thread, and threads of a warp: ``SPAN`` and ``WARP`` of ``tiles.cuh``.
SPAN, WARP = 16, 32


def block(plan: Plan) -> int:
    """Return the elements of a row that make a block."""
    return plan.format.block_size or PLAIN_BLOCK


def thread_group(plan: Plan) -> int:
    """Return the number of threads that take an item together: those of a block, but at least a warp."""
    return max(block(plan) // SPAN, WARP)


def numbers(plan: Plan) -> tuple[int | float, ...]:
    """Return the fields of ``struct Plan`` in ``lion.cuh``."""
    format = plan.format if plan.format.quantised else Format.of(8)  # any will do, where there are no codes
    return (
        *(PARAM_DTYPES.index(dtype) for dtype in (plan.param_dtype, plan.grad_dtype)),
        int(plan.format.quantised),
        *(format.bits, format.shift, format.largest_code, format.top),
        int(plan.format.tensor_wise),
        block(plan),
        CAUTIONS.index(plan.caution),
        PARAM_ROUNDINGS.index(plan.param_rounding),
        plan.master_bits,
        int(plan.nonfinite == "skip"),
    )


def source(plan: Plan) -> Source:
    """Return the kernels of a plan, for NVRTC: the plan is a constant there, and unused code is removed."""
    literals = ", ".join(f"{value.hex()}f" if isinstance(value, float) else str(value) for value in numbers(plan))
    text = f'#define LIONBITS_PLAN {literals}\n#line 1 "{KERNELS}"\n{(FOLDER / KERNELS).read_text()}'
    headers = tuple((file.name, file.read_text()) for file in sorted(FOLDER.glob("*.cuh")))
    return Source(KERNELS, text, headers)
