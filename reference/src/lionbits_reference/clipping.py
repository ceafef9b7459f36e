"""Gradient clipping per tensor: norms and factors stay on the device; launches do not grow with the number of tensors.

The norm sums squares in binary64, in a fixed order that depends on no thread count, device or slice size. It is
rounded to float32 once. A device without binary64 hands gradients to the CPU for that. Percentile clipping is that
of bitsandbytes before 0.50, with its off-by-one corrected: the limit is the q-th smallest of the last 100 norms,
the present one included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import pairwise
from .spec import binary64

#: Number of norms in the history of percentile clipping.
HISTORY = 100

_RUN = 1 << 16  # elements whose squares are summed as one tree
_AT_ONCE = 1 << 18  # elements that are in binary64 at a time


def gradient_norm(grad: Tensor, nonfinite: str) -> Tensor:
    """Return the Euclidean norm of ``grad``, float32, 0-d; ``nonfinite="skip"`` takes the finite elements alone.

    The order of the sum is fixed: logical row-major elements in runs of 65,536, each summed by
    :func:`~lionbits_reference.pairwise.sums`; then the runs' sums likewise.
    """
    return norm(sums_of_squares([grad], nonfinite)[0]).to(grad.device)


def sums_of_squares(grads: Sequence[Tensor], nonfinite: str) -> Tensor:
    """Return the squares of the norms, float64[k]. Ranks that hold parts of the tensors add these up.

    They are on the device of the gradients, or on the CPU where :func:`~lionbits_reference.spec.binary64` is.

    Args:
        grads: of one dtype and device, of any shapes and strides; one at least.
        nonfinite: a non-finite element counts as 0 with ``"skip"``.
    """
    sizes = [grad.numel() for grad in grads]
    flat = [grad.reshape(-1) for grad in grads]
    runs = torch.cat([_run_sums(parts, nonfinite) for parts in _portions(flat, sizes)])
    return pairwise.sums(runs, [max(-(-size // _RUN), 1) for size in sizes])


def norm(squares: Tensor) -> Tensor:
    """Return float32 norms of float64 sums of squares: the root rounded to binary64, and that to float32."""
    return _root(squares).to(torch.float32)


def remembered(histories: Tensor, norms: Tensor, steps: Tensor) -> Tensor:
    """Return the histories, float32[k, 100], each with the norm of its update number ``steps`` written in.

    An empty history (all zeros) is filled with the norm. A first norm of zero (the gradient of LoRA's A while B is
    zero) does not fill it: gradients would be clipped to zero until the zeros had left the window.

    A history of zeros is empty, and is filled with the norm. Were a first norm of zero to fill it (the gradient of
    LoRA's A while B is zero), gradients would be clipped to nothing until the zeros had left the window.

    Args:
        histories: float32[k, 100].
        norms: float32[k], of this update.
        steps: int64[k], counted on the device, so that they move on when a captured graph is replayed.
    """
    column = norms.unsqueeze(1)
    filled = torch.where(histories.amax(1, keepdim=True) == 0, column, histories)
    return filled.scatter(1, (steps % HISTORY).unsqueeze(1), column)


def percentile_limits(histories: Tensor, percentiles: Tensor) -> Tensor:
    """Return float32[k]: the q-th smallest norm of each history, for q in 1..100 from int64[k] ``percentiles``."""
    return histories.sort(1).values.gather(1, percentiles.unsqueeze(1) - 1).squeeze(1)


def clip_factor(norm: Tensor, limit: Tensor) -> Tensor:
    """limit / norm where norm exceeds limit, else 1, in float32."""
    return torch.where(norm > limit, limit / norm, 1.0)


def _root(x: Tensor) -> Tensor:
    """The square root of x >= 0 (float64), correctly rounded; torch's may be the neighbour, as MKL's is on a CPU.

    x is above the middle of two neighbours r and s just where it is above r*s: both are whole in squares of the last
    place, and the middle's square is a quarter of one more. Of the product both halves are needed.
    """
    root = x.sqrt()
    above, below = (torch.nextafter(root, torch.full_like(root, end)) for end in (torch.inf, 0.0))
    up, down = _lacks(x, root, above) > 0, _lacks(x, root, below) <= 0  # neither where x is not finite
    return torch.where(up, above, torch.where(down, below, root))


def _lacks(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x - a*b, of which no bit is lost that decides its sign, where a*b is next to x; NaN where x is not finite."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    rest = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return (x - product) - rest


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """float64 x as a sum of two numbers of at most 26 bits (Veltkamp), whose products are exact."""
    shifted = x * (2.0**27 + 1)
    high = shifted - (shifted - x)
    return high, x - high


def _portions(flat: Sequence[Tensor], sizes: Sequence[int]) -> Iterator[list[tuple[Tensor, int]]]:
    """Yield lists of (part of a tensor, its size) that fit the memory granted to binary64.

    A part is a number of whole runs; the last part of a tensor may end in a shorter run.
    """
    portion: list[tuple[Tensor, int]] = []
    elements = 0
    for x, total in zip(flat, sizes, strict=True):
        for first in range(0, max(total, 1), _AT_ONCE):
            size = min(_AT_ONCE, total - first)
            if portion and elements + size > _AT_ONCE:
                yield portion
                portion, elements = [], 0
            portion.append((x if size == total else x[first : first + size], size))
            elements += size
    yield portion


def _run_sums(parts: Sequence[tuple[Tensor, int]], nonfinite: str) -> Tensor:
    x = binary64(torch.cat([part for part, _ in parts]) if len(parts) > 1 else parts[0][0])
    if nonfinite == "skip":
        x = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
    runs = [min(_RUN, size - first) for _, size in parts for first in range(0, max(size, 1), _RUN)]
    return pairwise.sums(x * x, runs)
