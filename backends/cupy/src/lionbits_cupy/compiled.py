"""NVRTC's output for the kernels, for a GPU that need not be there: ``python -m lionbits_bench sass``."""

from __future__ import annotations

from lionbits_reference.spec import Plan

from . import build
from .launch import KERNELS
from .source import SPAN, source


def kernels(plan: Plan, architecture: int) -> dict[str, tuple[str, bytes]]:
    """Return PTX and cubin of each kernel, by name; one cubin has them all."""
    built = build.build(source(plan), architecture)
    return dict.fromkeys(KERNELS, (built.ptx, built.cubin))


def elements_per_thread(plan: Plan) -> int:
    """Return the elements of a thread in a tile of the fast path."""
    del plan
    return SPAN
