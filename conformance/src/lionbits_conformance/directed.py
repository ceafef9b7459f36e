"""Single cases, made and not drawn: plain calls of common plans, large tensors, many tensors, long runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lionbits_reference.spec import Format, Plan

from .cases import Case, TensorCase
from .placing import GRAD_LAYOUTS, LAYOUTS

_F32, _BF16, _F16 = torch.float32, torch.bfloat16, torch.float16
_8, _4, _32 = Format.of(8), Format.of(4), Format.of(32)

#: How many tensors a call has, beside the few that are drawn.
MANY = (40, 130, 300)


def plain_calls(plan: Plan) -> list[Case]:
    """One contiguous matrix of a few whole blocks; one with a short last block, updated twelve times."""
    block = plan.format.block_size or 256
    usual = Case(plan, (), lr=1e-3, weight_decay=0.1)
    whole = replace(usual, tensors=(TensorCase((7, 2 * block), seed=1),), updates=3, renewal="new")
    short = TensorCase((3, block + block // 2 + 1), seed=2)
    return [whole, replace(usual, tensors=(short,), updates=12, renewal="rewritten")]


def last_blocks(plan: Plan) -> Case:
    """Rows that end one element before, at and behind the end of a block, and one row of a single element."""
    block = plan.format.block_size or 256
    columns = (block - 1, block, block + 1, 2 * block - 1, 2 * block + 1, 1)
    tensors = tuple(TensorCase((min(70, 1 + 8192 // width), width), seed=width) for width in columns)
    return Case(plan, tensors, weight_decay=0.1, updates=2, renewal="rewritten")


def layouts(plan: Plan) -> Case:
    """A tensor of each layout, and gradients of each, of two to five dimensions; both change between updates."""
    shapes = ((6, 70), (5, 6, 40), (3, 4, 5, 6), (2, 3, 4, 3, 5))
    pairs = [(layout, "contiguous") for layout in LAYOUTS] + [("contiguous", layout) for layout in GRAD_LAYOUTS]
    tensors = tuple(
        TensorCase(shapes[j % 4], seed=j // 4 + 3 * j, layout=layout, grad_layout=grad_layout)
        for j, (layout, grad_layout) in enumerate(pair for pair in pairs for _ in shapes)
    )
    return Case(plan, tensors, weight_decay=0.1, updates=3, renewal="rewritten")


def positions(plan: Plan) -> Case:
    """Rectangles of wider parameters, at positions and of parameters whose numbers leave 8, 16, 31 and 32 bits."""
    tensors = tuple(
        TensorCase((5, 66), seed=j, start=start, beyond=beyond, momentum_kind="zeros")
        for j, (start, beyond) in enumerate(
            ((0, 2), (64, 2**16), (0, 2**31), (0, 2**32), (2**31, 0), (2**32 - 64, 64), (2**33 - 32, 0), (2**34, 2**33))
        )
    )
    return Case(plan, tensors, betas=(0.9, 0.0), index=2**16 - 12, updates=2)


def large() -> dict[str, Case]:
    """Tensors larger than what is worked on at once, with more rows than a grid may have, or longer ones."""
    usual: dict[str, Any] = {"weight_decay": 0.1, "updates": 2, "renewal": "new"}
    return {
        "600 rows of 512": Case(Plan(_BF16, _BF16, _8), (TensorCase((600, 512)),), **usual),
        "600 rows of 512, transposed": Case(
            Plan(_F32, _F32, _8), (TensorCase((600, 512), layout="transposed", grad_layout="transposed"),), **usual
        ),
        "1100 rows of 1024": Case(
            Plan(_BF16, _BF16, _4, param_rounding="dithered"), (TensorCase((1100, 1024), kind="heavy"),), **usual
        ),
        "70000 rows of 2": Case(Plan(_F32, _F32, _32, "mask"), (TensorCase((70_000, 2)),), **usual),
        "66000 rows of 32": Case(Plan(_F32, _F32, Format.of(8, block_size=32)), (TensorCase((66_000, 32)),), **usual),
        "8200 rows of 33": Case(Plan(_F16, _F16, _4), (TensorCase((8200, 33)),), **usual),
        "2 rows of 8193": Case(Plan(_BF16, _BF16, _8), (TensorCase((2, 8193), kind="sloping"),), **usual),
        "a vector of 300001": Case(Plan(_BF16, _BF16, _4), (TensorCase((300_001,), start=64),), **usual),
    }


def many(plan: Plan, count: int) -> Case:
    """A call with as many small tensors, no two alike, one of them empty."""
    shapes = ((2, 33), (40,), (0, 4), (3, 5), (1, 257), (4, 4, 4))
    tensors = tuple(TensorCase(shapes[j % len(shapes)], seed=j, magnitude=j % 9 - 4) for j in range(count))
    return Case(plan, tensors, weight_decay=0.1, updates=2, renewal="new")


def long_run(plan: Plan) -> Case:
    """Twenty updates with one preparation, gradients that are strided and written anew in place."""
    tensors = (
        TensorCase((9, 130), layout="padded", grad_layout="padded", seed=1),
        TensorCase((3, 5, 40), layout="permuted", grad_layout="transposed", seed=2),
        TensorCase((2, 70), grad_layout="expanded", seed=3),
    )
    return Case(plan, tensors, weight_decay=0.1, updates=20, renewal="rewritten")
