"""Every plan and format that there is, in one order."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lionbits_reference.spec import (
    CAUTIONS,
    FLOAT32,
    FORMATS,
    MASTER_BITS,
    NONFINITE,
    PARAM_DTYPES,
    PARAM_ROUNDINGS,
    Format,
    Plan,
)

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def every_plan(bits: int | None = None, dtype: torch.dtype | None = None) -> Iterator[Plan]:
    """All plans there are, or those of some bits and parameter dtype; the plainest first."""
    for format in every_format(bits):
        for param in PARAM_DTYPES if dtype is None else (dtype,):
            for rounding, master in _every_rounding(param):
                for nonfinite in NONFINITE:
                    for caution in CAUTIONS:
                        for grad in (param, *(other for other in PARAM_DTYPES if other != param)):
                            yield Plan(param, grad, format, caution, rounding, master, nonfinite)


def every_format(bits: int | None = None) -> list[Format]:
    """All formats in all blocks, or those of some bits."""
    narrow = [
        Format.of(width, name, block or None, block_wise=block != 0)
        for width, names in FORMATS.items()
        if bits in (None, width)
        for name in names
        for block in (*BLOCK_SIZES, 0)
    ]
    return [FLOAT32, *narrow] if bits in (None, 32) else narrow


def _every_rounding(dtype: torch.dtype) -> list[tuple[str, int]]:
    if dtype != torch.bfloat16:
        return [("nearest", 32)]
    return [(name, m) for name in PARAM_ROUNDINGS for m in (MASTER_BITS if name == "compensated" else (32,))]
