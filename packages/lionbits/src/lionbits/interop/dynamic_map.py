"""The codec of bitsandbytes' 8-bit optimizers: 256 values between -0.993 and 1, and one absmax per block."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import pad

#: Elements of the flattened tensor that share an absmax; 2048 before 0.44.
BLOCK = 256
OLD_BLOCK = 2048

_DECADES = 7


@functools.cache
def table() -> Tensor:
    """The values, float32[256], ascending.

    From 1e-6 to 1 each decade is cut into twice as many equal parts as the one below, and its values are their
    middles: 1 in the lowest, 64 in the highest. With their negatives, zero and one they are 256.
    """
    values = []
    for decade in range(_DECADES):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32, device="cpu")
        values.append((edges[:-1] + edges[1:]) / 2.0 * 10.0 ** (decade - _DECADES + 1))
    positive = torch.cat(values)
    return torch.cat([positive, -positive, torch.tensor([0.0, 1.0], dtype=torch.float32, device="cpu")]).sort().values


def quantise(momentum: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 codes of the momentum's shape and float32 absmax[ceil(n/256)], each element rounded to nearest.

    The table ends at -0.993 and 1. A block's absmax is the least with which its ends can hold the largest elements of
    either sign; with it momentum that came from such codes gets the same codes again.
    """
    values = table().to(momentum.device)
    flat = momentum.reshape(-1)
    blocks = pad(flat, (0, -flat.numel() % BLOCK)).reshape(-1, BLOCK)
    low, high = values[0], values[-1]
    if not flat.numel():
        return torch.zeros_like(momentum, dtype=torch.uint8), flat.new_zeros(0)
    absmax = torch.maximum(blocks.amax(dim=1) / high, blocks.amin(dim=1) / low)
    absmax = absmax.clamp(max=torch.finfo(torch.float32).max)
    unscaled = torch.where(absmax[:, None] > 0, blocks / absmax[:, None], 0.0)
    codes = torch.bucketize(unscaled, (values[:-1] + values[1:]) / 2).to(torch.uint8)
    return codes.reshape(-1)[: flat.numel()].reshape(momentum.shape), absmax


def dequantise(codes: Tensor, values: Tensor, absmax: Tensor, block: int) -> Tensor:
    """float32 values[codes] * absmax of each one's block, of the codes' shape."""
    scale = absmax.repeat_interleave(block)[: codes.numel()]
    return (values[codes.reshape(-1).to(torch.int64)] * scale).reshape(codes.shape)
