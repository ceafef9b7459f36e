"""A few steps with known results: whether the library was built so that it computes as IEEE 754 and the rule say.

A compiler that fuses a multiplication with an addition, drops subnormal numbers, divides by a reciprocal or takes NaN
for impossible gives other bits. The values are such that each of these shows; the checksums are the reference's.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lionbits_reference.spec import Format, Hyper, Plan, Scalars, Slot

COLUMNS = 3 * 32 + 5

_FLOAT, _BFLOAT, _HALF = torch.float32, torch.bfloat16, torch.float16

#: Plans, and the CRC-32 of parameter and state after three steps of the reference.
KNOWN = {
    Plan(_FLOAT, _FLOAT, Format.of(32)): 0xDA21A057,
    Plan(_FLOAT, _BFLOAT, Format.of(8, block_size=32), caution="mask"): 0xE7C257BF,
    Plan(_BFLOAT, _FLOAT, Format.of(4, block_size=32), param_rounding="dithered"): 0x371B449B,
    Plan(_BFLOAT, _BFLOAT, Format.of(8), "gradient", "compensated"): 0xB08B7A09,
    Plan(_HALF, _HALF, Format.of(4, "e0m3"), nonfinite="propagate"): 0x3B788F40,
}


@functools.cache
def failure(prepare: Callable[..., Any], step: Callable[..., None]) -> str:
    """Empty, or the plan whose results are others; found out once in a process.

    Args:
        prepare, step: of a backend.
    """
    with torch.device("cpu"):  # whatever device is the user's default
        wrong = [plan for plan, known in KNOWN.items() if checksum(prepare, step, plan) != known]
    return f"a step of {wrong[0]} gives other bits than the reference" if wrong else ""


def checksum(prepare: Callable[..., Any], step: Callable[..., None], plan: Plan) -> int:
    """CRC-32 of a parameter and its state after three steps of a plan."""
    shape = (2, COLUMNS)
    param = numbers(shape, 1).nan_to_num(0.5, 0.25, 0.125).to(plan.param_dtype)  # NaN has more than one bit pattern
    state = {key: torch.zeros(s.shape, dtype=s.dtype) for key, s in plan.state_spec(shape).items()}
    slots = [Slot(param, state, 7)]
    scalars = Scalars(
        lr=torch.tensor([1e-3], dtype=torch.float32),
        keep=torch.tensor([0.9999], dtype=torch.float32),
        grad_scale=torch.tensor([0.75], dtype=torch.float32),
        step=torch.zeros(1, dtype=torch.int64),
        skipped=torch.zeros(1, dtype=torch.int64),
    )
    grads = [numbers(shape, seed).to(plan.grad_dtype) for seed in (2, 3, 4)]
    prepared = prepare(plan, slots, grads[:1])
    for grad in grads:
        scalars.step.add_(1)
        step(prepared, [grad], Hyper.of((0.9, 0.99), seed=3), scalars)
    crc = int(scalars.skipped.item())
    for tensor in (param, *state.values()):
        crc = zlib.crc32(tensor.view(torch.uint8).numpy().tobytes(), crc)
    return crc


def numbers(shape: tuple[int, int], seed: int) -> Tensor:
    """float32 of all sizes: ordinary ones, subnormal ones, zeros, infinities and NaNs, by integer arithmetic alone."""
    i = torch.arange(shape[0] * shape[1], dtype=torch.int64) + 1000 * seed
    words = (i * 2654435761 + (i * i) * 40503) & 0xFFFFFFFF
    exponent = 118 + words % 11
    exponent = torch.where(i % 29 == 0, 0, torch.where(i % 31 == 0, 40, exponent))
    bits = (words & 0x807FFFFF) | (exponent << 23)
    bits = torch.where(i % 37 == 0, 0x7F800000, torch.where(i % 41 == 0, 0x7FC00000, bits))
    return bits.sub(bits.ge(1 << 31) * (1 << 32)).to(torch.int32).view(torch.float32).reshape(shape)
