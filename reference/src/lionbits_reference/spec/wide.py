"""binary64 on devices that have none, as Apple's: the CPU's."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def binary64(x: Tensor) -> Tensor:
    """``x`` in binary64, on its device; on the CPU, of the same values, where the device has no binary64.

    What is computed there has the same bits. The host waits for the device.
    """
    return (x if _has_binary64(x.device) else x.to("cpu")).to(torch.float64)


def _has_binary64(device: torch.device) -> bool:
    return device.type in ("cpu", "cuda") or _tried(device)


@functools.cache
def _tried(device: torch.device) -> bool:
    """Whether a root in binary64 can be taken there: some devices refuse the dtype, others what computes with it."""
    try:
        return bool(torch.full((), 4.0, dtype=torch.float64, device=device).sqrt().item() == 2.0)
    except (TypeError, RuntimeError):
        return False
