"""Gradient clipping per tensor: norms up, factors down, all on the device.

The norm sums squares in binary64, in a fixed order that no thread count, device or slice size changes, and is
rounded to float32 once. A device without binary64 hands gradients to the CPU for that. Percentile clipping is that
of bitsandbytes before 0.50, with its off-by-one mended: the limit is the q-th smallest of the last 100 norms, the
present one included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .spec import binary64

#: How many norms percentile clipping remembers.
HISTORY = 100

_LEAF = 1 << 16  # elements whose squares are summed by halving, as one tree


def gradient_norm(grad: Tensor, nonfinite: str) -> Tensor:
    """Euclidean norm of ``grad``, float32, 0-d; with ``nonfinite="skip"``, of the elements that are finite.

    The order of the sum is part of the meaning: logical row-major elements in runs of 65,536, each filled up with
    zeros to a power of two and halved (x[:n/2] + x[n/2:]) down to one number; then the runs' sums likewise.
    """
    return norm(sum_of_squares(grad, nonfinite)).to(grad.device)


def sum_of_squares(grad: Tensor, nonfinite: str) -> Tensor:
    """What :func:`gradient_norm` is the root of, float64, 0-d: ranks with parts of a tensor add these up.

    It is on the device of ``grad``, or on the CPU where :func:`~lionbits_reference.spec.binary64` is.
    """
    flat = grad.detach().reshape(-1)
    return _halve(torch.stack([_leaf(run, nonfinite) for run in flat.split(_LEAF)]))


def norm(squares: Tensor) -> Tensor:
    """float32 norms of float64 sums of squares: the root rounded to binary64, and that to float32."""
    return _root(squares).to(torch.float32)


def remember(norms: Tensor, norm: Tensor, step: int | Tensor) -> None:
    """Put the ``norm`` of update number ``step`` in its place of the float32[100] history, in place.

    A ``step`` on the device is counted there, and so moves on when a captured graph is replayed.

    A history of zeros is empty, and is filled with the norm. Were a first norm of zero to fill it (the gradient of
    LoRA's A while B is zero), gradients would be clipped to nothing until the zeros had left the window.
    """
    norms.copy_(torch.where(norms.amax() == 0, norm, norms))
    place = torch.as_tensor(step % HISTORY, device=norms.device)
    norms.index_copy_(0, place.reshape(1), norm.reshape(1))


def percentile_limit(norms: Tensor, q: int) -> Tensor:
    """The q-th smallest of the history, 0-d float32; q in 1..100."""
    return norms.sort().values[q - 1]


def clip_factor(norm: Tensor, limit: Tensor) -> Tensor:
    """limit / norm where norm exceeds limit, else 1; 0-d float32."""
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


def _leaf(run: Tensor, nonfinite: str) -> Tensor:
    x = binary64(run)
    if nonfinite == "skip":
        x = torch.where(torch.isfinite(x), x, 0.0)
    return _halve(x * x)


def _halve(x: Tensor) -> Tensor:
    """The sum of a 1-d tensor as a balanced binary tree."""
    size = 1 << max(len(x) - 1, 0).bit_length()
    x = torch.nn.functional.pad(x, (0, size - len(x)))
    while len(x) > 1:
        half = len(x) // 2
        x = x[:half] + x[half:]
    return x[0]
