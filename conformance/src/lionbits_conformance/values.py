"""Numbers that find faults, by kind. All come from a seed, on the CPU, as float32.

Random gradients prove little: a wrong formula differs from the right one in the last bits, which hardly ever change a
sign. ``"cancelling"`` gradients make c = m*b1 + g*(1-b1) come out next to zero, where the last bits are all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lionbits_reference.spec import FLOAT32, Format, Hyper, matrix_shape

#: Kinds of gradients.
KINDS = (
    "normal",
    "sparse",
    "heavy",
    "sloping",
    "denormal",
    "overflow",
    "ties",
    "zeros",
    "nonfinite",
    "sparse_sign",
    "cancelling",
    "threshold",
)

#: Kinds of parameters.
PARAM_KINDS = ("normal", "zeros", "subnormal", "largest", "infinite", "powers")

#: Kinds that need no momentum to lean on, for momentum itself. (Momentum is always finite.)
MOMENTUM_KINDS = ("normal", "sparse", "heavy", "sloping", "denormal", "overflow", "ties", "zeros")

#: Largest magnitudes of a block at which its scale is kept or not, is held or not, and their neighbours.
_THRESHOLDS = torch.tensor(
    [
        *(2.0**-100, 2.0**-100 * (1 + 2.0**-23), 2.0**-100 * (1 - 2.0**-24)),
        *(2.0**127, 2.0**127 * (1 + 2.0**-23), 2.0**127 * (1 - 2.0**-24)),
        *(torch.finfo(torch.float32).max, 2.0**-126, 2.0**-149, 0.0),
    ]
)

_INFINITY = torch.tensor(torch.inf)
_LARGEST = torch.finfo(torch.float32).max
#: The NaN of the largest bits: rounding them as those of a number overflows into the sign.
_LAST_NAN = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)


def values(kind: str, magnitude: int, shape: Sequence[int], seed: int, format: Format = FLOAT32) -> Tensor:
    """float32 numbers of one kind, scaled by 2^magnitude where that has a meaning.

    ``"ties"`` and ``"threshold"`` are ``format``'s.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(tuple(shape), generator=generator)
    uniform = torch.rand(tuple(shape), generator=generator)
    if kind == "sparse":
        normal = torch.where(uniform < 0.8, 0.0, normal)
    elif kind == "heavy":
        normal = normal * torch.exp2(torch.floor(uniform * 40 - 20))
    elif kind == "sloping":  # so that a block that takes another's scale shows
        slope = torch.exp2(torch.linspace(0, -16, normal.numel()))
        normal = normal * (slope.flip(0) if seed % 2 else slope).reshape(normal.shape)
    elif kind == "denormal":
        return normal * 2.0**-120 * 2.0**-20 * (1 + 7 * uniform)
    elif kind == "overflow":
        return torch.where(uniform < 0.3, torch.sign(normal) * _LARGEST, normal * (_LARGEST / 8))
    elif kind == "ties":
        normal = torch.sign(normal) * _codes_and_midpoints(format, uniform)
    elif kind == "zeros":
        normal = torch.where(uniform < 0.5, 0.0, -0.0)
    elif kind == "sparse_sign":
        normal = torch.where(torch.arange(normal.numel()).reshape(normal.shape) == 0, 1.0, 0.0)
    elif kind == "threshold":
        return _at_thresholds(normal, uniform, format, seed)
    elif kind == "nonfinite":
        bad = torch.cat((torch.tensor([torch.nan, torch.inf, -torch.inf]), _LAST_NAN))[
            (uniform * 40).long().clamp(max=3)
        ]
        normal = torch.where(uniform < 0.1, bad, normal)
    return normal * 2.0**magnitude


def parameter(kind: str, shape: Sequence[int], seed: int, dtype: torch.dtype) -> Tensor:
    """Numbers of one of :data:`PARAM_KINDS` in the parameter's own dtype, whose largest and smallest they are."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(tuple(shape), generator=generator)
    limits = torch.finfo(dtype)
    if kind == "zeros":
        return torch.copysign(torch.zeros(()), normal).to(dtype)
    if kind == "subnormal":
        return (normal * 0.3 * limits.tiny).to(dtype)
    if kind == "largest":
        return (torch.where(normal.abs() < 1, torch.sign(normal), normal.clamp(-1, 1) * 0.99) * limits.max).to(dtype)
    if kind == "infinite":
        return torch.where(normal > 1, torch.inf, torch.where(normal < -1, -torch.inf, normal)).to(dtype)
    if kind == "powers":  # next to which numbers lie half as far apart below as above
        return torch.copysign(torch.exp2(torch.round(4 * normal)), normal).to(dtype)
    return normal.to(dtype)


def with_low_bits(param: Tensor, seed: int) -> Tensor:
    """float32 numbers whose upper halves are a bfloat16 ``param``'s, with any lower halves; infinities stay."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 1 << 16, param.shape, generator=generator, dtype=torch.int32)
    master = param.to(torch.float32)
    return torch.where(master.isinf(), master, (master.view(torch.int32) | low).view(torch.float32))


def gradient(
    kind: str,
    magnitude: int,
    momentum: Tensor,
    betas: Sequence[float],
    seed: int,
    format: Format = FLOAT32,
    scale: float = 1.0,
) -> Tensor:
    """A float32 gradient of one kind for a parameter whose decoded momentum is ``momentum``.

    ``"cancelling"`` ones make the two products of c the same number or neighbours once the gradient has been
    multiplied by ``scale``: what is left of c, a zero or an ulp, tells one formula from another.
    """
    if kind != "cancelling":
        return values(kind, magnitude, momentum.shape, seed, format)
    hyper = Hyper.of(betas)
    generator = torch.Generator().manual_seed(seed)
    wanted = -(momentum * hyper.b1)
    nearest = (wanted.double() / hyper.one_minus_b1 / scale).to(torch.float32)
    nudge = torch.randint(-1, 2, momentum.shape, generator=generator)
    return torch.where(nudge == 0, nearest, torch.nextafter(nearest, torch.copysign(_INFINITY, nudge.float())))


def _at_thresholds(normal: Tensor, uniform: Tensor, format: Format, seed: int) -> Tensor:
    """Blocks whose largest magnitude, which their first element has, is one of the thresholds, in turn."""
    if not normal.numel():
        return normal
    rows, columns = matrix_shape(normal.shape)
    block = format.block_size or (columns if not format.tensor_wise else rows * columns)
    column = torch.arange(columns)
    number = torch.arange(rows)[:, None] * -(-columns // block) + column // block
    if format.tensor_wise:
        number = torch.zeros_like(number)
    largest = _THRESHOLDS[(number + seed) % len(_THRESHOLDS)].reshape(normal.shape)
    part = torch.where(column % block == 0, 1.0, uniform.reshape(rows, columns)).reshape(normal.shape)
    return torch.copysign(largest * part, normal)


def _codes_and_midpoints(format: Format, uniform: Tensor) -> Tensor:
    """Magnitudes picked from the format's values, the largest often, and what lies half-way between two."""
    count = format.largest_code if format.quantised else 255
    codes = [format.value(k) if format.quantised else float(k) for k in range(count + 1)]
    middles = [(low + high) / 2 for low, high in pairwise(codes)]
    choices = torch.tensor([*codes, *middles, *[codes[-1]] * (1 + count // 4)])
    return choices[(uniform * len(choices)).long().clamp(max=len(choices) - 1)]
