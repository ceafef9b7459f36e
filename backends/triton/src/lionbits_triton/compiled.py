"""Triton's output for the kernels, for a GPU that need not be there: ``python -m lionbits_bench sass``.

Kernels are compiled as in a launch, by a driver that only says which GPU it is.
"""

from __future__ import annotations

import torch

from lionbits_reference.spec import Plan

from . import launch
from .kernels import count_kernel, decode_kernel, encode_kernel, step_kernel
from .launch import compile
from .lion import INTERPRETED

_WORDS, _NUMBERS, _BITS = (torch.empty(1, dtype=dtype) for dtype in (torch.int64, torch.float32, torch.int32))
_TABLE = (_WORDS, _WORDS, _WORDS)
_BETAS = (0.9, 0.1, 0.99, 0.01)


def kernels(plan: Plan, architecture: int) -> dict[str, tuple[str, bytes]]:
    """Return PTX and cubin of each kernel that a plan needs, by name.

    Raises:
        RuntimeError: Triton's interpreter is on.
    """
    if INTERPRETED.value:
        raise RuntimeError("TRITON_INTERPRET is set: the interpreter compiles nothing")
    cut = launch.cut(plan, [])
    paths = {"EVEN": cut.even, "UNEVEN": cut.uneven}
    numbers = (_NUMBERS, _NUMBERS, _NUMBERS, _WORDS, _NUMBERS, _WORDS, *_BETAS, 1, 1, 0, 0)
    found = {"step_kernel": compile(step_kernel, (*_TABLE, *numbers), cut, architecture, **paths)}
    for name, to in (("aligned", _WORDS), ("absmax", _BITS)):
        constants = {**paths, "ALIGNED": name == "aligned"}
        found[name] = compile(count_kernel, (*_TABLE, _NUMBERS, to, *_BETAS), cut, architecture, **constants)
    if plan.format.quantised:
        cut = launch.cut(Plan(torch.float32, torch.float32, plan.format), [])
        found["encode"] = compile(encode_kernel, (*_TABLE, _NUMBERS), cut, architecture, UNEVEN=cut.uneven)
        found["decode"] = compile(decode_kernel, _TABLE, cut, architecture, UNEVEN=cut.uneven)
    return {name: (each.asm["ptx"], each.asm["cubin"]) for name, each in found.items()}


def elements_per_thread(plan: Plan) -> int:
    """Return the elements of a thread in a tile of the fast path."""
    cut = launch.cut(plan, [])
    return cut.even.rows * cut.even.block // (32 * cut.warps)
