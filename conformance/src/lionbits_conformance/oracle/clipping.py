"""Gradient norms, their history, and the clipping factor.

The norm of a tensor is float32(sqrt(sum of squares)), squares, sums and root in binary64. Addition rounds, so the order
of the sum is specified: elements in logical row-major order, in runs of 65,536; each run filled up with
zeros to a power of two and folded in half (the first half's elements plus the second half's, pairwise) until one number
is left; the runs' sums then likewise.
"""

from __future__ import annotations

from collections.abc import Sequence

from .floats import BINARY32, BINARY64, ONE, ZERO, Number, greater, is_finite, is_nan, of_float
from .records import Settings

#: Number of norms in the history of percentile clipping.
HISTORY = 100

_RUN = 65536


def norm_of(grad: Sequence[Number], nonfinite: str) -> Number:
    """The Euclidean norm, of the finite elements only unless ``nonfinite`` is "propagate"."""
    squares = [BINARY64.mul(x, x) if nonfinite == "propagate" or is_finite(x) else ZERO for x in grad]
    runs = [squares[start : start + _RUN] for start in range(0, len(squares), _RUN)]
    return BINARY32.round(BINARY64.sqrt(folded([folded(run) for run in runs])))


def folded(numbers: Sequence[Number]) -> Number:
    """Return the sum as a balanced binary tree of binary64 additions; 0 for no numbers."""
    size = 1
    while size < len(numbers):
        size *= 2
    numbers = [*numbers, *[ZERO] * (size - len(numbers))]
    while size > 1:
        size //= 2
        numbers = [BINARY64.add(numbers[j], numbers[j + size]) for j in range(size)]
    return numbers[0]


def remembered(norms: Sequence[Number], norm: Number, step: int) -> list[Number]:
    """Return the history with the norm of update ``step`` at step mod 100; an empty one (zeros) is filled first."""
    history = list(norms) if any(x[1] for x in norms) else [norm] * HISTORY
    history[step % HISTORY] = norm
    return history


def percentile(norms: Sequence[Number], q: int) -> Number:
    """The q-th smallest norm; NaNs come last."""
    known = sorted((x for x in norms if not is_nan(x)), key=BINARY32.to_bits)  # bits of x >= 0 are in x's order
    return known[q - 1] if q <= len(known) else next(x for x in norms if is_nan(x))


def clip_factor(norm: Number, settings: Settings, history: Sequence[Number]) -> Number:
    """float32(limit / norm) where the norm exceeds the limit, else 1; of several limits the smaller counts.

    ``grad_clip`` is a limit where it is above 0, rounded to binary32 once; the percentile of the history, which has the
    norm in it, where ``percentile_clipping`` is below 100. A limit that is NaN limits nothing.
    """
    limits = []
    if of_float(settings.grad_clip)[1]:
        limits.append(BINARY32.round(of_float(settings.grad_clip)))
    if settings.percentile_clipping < HISTORY:
        limits.append(percentile(history, settings.percentile_clipping))
    factor = ONE
    smallest: Number | None = None
    for limit in limits:
        if not is_nan(limit) and (smallest is None or greater(smallest, limit)):
            smallest = limit
    if smallest is not None and greater(norm, smallest):
        factor = BINARY32.div(smallest, norm)
    return factor
