"""Tensors: shapes around the blocks of a plan, layouts, positions, kinds of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import strategies as st

from lionbits_conformance.cases import TensorCase
from lionbits_conformance.placing import GRAD_LAYOUTS, LAYOUTS
from lionbits_conformance.values import KINDS, MOMENTUM_KINDS, PARAM_KINDS

ODD = (1, 2, 3, 5, 7, 31, 32, 33, 37, 64, 97, 127, 128, 129, 251, 256, 257)
LONG = (48, 144, 720, 1031, 1040)  # vectors that are no blocks, rows of many threads
FEW_ROWS, MANY_ROWS = (1, 2, 3, 5), (6, 7, 8, 9, 13, 17, 31, 33, 64, 65, 70)

#: Elements of a tensor of many rows, at most; it has fewer rows where they are long.
MOST = 1 << 13

#: Where a rectangle begins in its parameter, and by how much its rows are shorter than the parameter's.
STARTS = (64, 2**31, 2**32 - 32, 2**33 - 32, 2**33 - 10, 2**34)
BEYOND = (2, 30, 254, 2**16, 2**31, 2**33)


@st.composite
def shapes(draw: st.DrawFn, block: int = 256, most: int = MOST) -> tuple[int, ...]:
    """From empty and 0-d to 70 rows, rows that end one before, at and one behind a block, and five dimensions."""
    kind = draw(st.integers(0, 9))
    if kind < 5:
        around = (block - 1, block, block + 1, 2 * block - 1, 2 * block + 1, 3 * block)
        columns = draw(st.sampled_from(ODD) | st.sampled_from(LONG) | st.sampled_from(around))
        rows = draw(st.sampled_from(FEW_ROWS) | st.sampled_from(MANY_ROWS))
        return min(rows, max(most // columns, 2)), columns
    small = st.sampled_from((1, 2, 3, 5))
    if kind == 5:
        return (draw(st.sampled_from((*ODD, block - 1, block + 1, 4099))),)
    if kind == 6:
        return draw(small), draw(small), draw(st.sampled_from(ODD))
    if kind == 7:
        return tuple(draw(st.lists(small, min_size=3, max_size=5)))
    if kind == 8:  # what convolutions have
        inner = draw(st.lists(st.sampled_from((1, 2, 3, 4, 7)), min_size=2, max_size=3))
        return draw(st.sampled_from((2, 6, 9, 16))), draw(st.sampled_from((1, 3, 8))), *inner
    return draw(
        st.sampled_from(
            [(), (0,), (0, 5), (5, 0), (2, 1031), (4099,), (3, 4, 4, 4), (2, 3, 4, 4, 4), (129, 8), (43, 1, 5, 5)]
        )
    )


def few() -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of at most 140 elements, for exact arithmetic."""
    shapes = [
        (3, 37),
        (40,),
        (2, 33),
        (1, 64),
        (5,),
        (),
        (0, 4),
        (1, 1, 97),
        (2, 3, 4, 5),
        (9, 15),
        (2, 2, 3, 2, 5),
        (21, 3),
        (7, 1, 2, 5),
    ]
    return st.sampled_from(shapes)


@st.composite
def tensors(
    draw: st.DrawFn,
    kinds: Sequence[str] = KINDS,
    sizes: st.SearchStrategy[tuple[int, ...]] | None = None,
    block: int = 256,
) -> TensorCase:
    """A tensor of any shape, layout and kind of values."""
    shape = draw(shapes(block) if sizes is None else sizes)
    wide = len(shape) > 1 and math.prod(shape[1:]) >= 32
    return TensorCase(
        shape=shape,
        kind=draw(st.sampled_from(kinds)),
        momentum_kind=draw(st.sampled_from(MOMENTUM_KINDS)),
        magnitude=draw(st.integers(-8, 8) | st.integers(-80, 60)),
        seed=draw(st.integers(0, 10_000)),
        layout=draw(st.sampled_from(LAYOUTS)),
        grad_layout=draw(st.sampled_from(GRAD_LAYOUTS)),
        start=draw(st.just(0) | st.sampled_from(STARTS)),
        param_kind=draw(st.just("normal") | st.sampled_from(PARAM_KINDS)),
        beyond=draw(st.just(0) | st.sampled_from(BEYOND)) if wide else 0,
    )
