"""binary64 arithmetic: on the tensor's device, or on the CPU where the device has none (Apple's)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def binary64(x: Tensor) -> Tensor:
    """Return ``x`` in binary64: on its device, or on the CPU if the device has no binary64.

    Both give the same bits. A copy to the CPU makes the host wait for the device.
    """
    return (x if _has_binary64(x.device) else x.to("cpu")).to(torch.float64)


def _has_binary64(device: torch.device) -> bool:
    return device.type in ("cpu", "cuda") or _tried(device)


@functools.cache
def _tried(device: torch.device) -> bool:
    """True if ``device`` computes a binary64 root: some devices refuse the dtype, others the operations on it."""
    try:
        return bool(torch.full((), 4.0, dtype=torch.float64, device=device).sqrt().item() == 2.0)
    except (TypeError, RuntimeError):
        return False
