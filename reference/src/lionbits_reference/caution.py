"""The factor on the learning rate that makes up for the elements which a cautious mask does not move."""

from __future__ import annotations

import torch
from torch import Tensor

from .spec import binary64

#: ``cautious=`` of the optimizer -> ``Plan.caution`` of the kernels.
PLAN_CAUTION = {None: "none", "mask": "mask", "c-optim": "mask", "timm": "mask", "gradient": "gradient"}


def rate_factor(cautious: str, aligned: Tensor, numel: Tensor) -> Tensor:
    """Return the factor on each learning rate, float32[k], formed in binary64 and rounded once.

    Args:
        cautious: ``"mask"``: n / max(aligned, 1), exact on average; ``"c-optim"``: n / (aligned + 1), the
            paper's code, which halves the step of a scalar; ``"timm"``: 1 / max(aligned/n, 1e-3).
        aligned: int64[k], counted over whole tensors.
        numel: int64[k], elements of whole tensors.
    """
    n, k = binary64(numel), binary64(aligned)
    if cautious == "mask":
        moving = k.clamp(min=1)
    elif cautious == "c-optim":
        moving = k + 1
    else:
        moving = torch.maximum(k, n * 1e-3)
    return (n / moving).to(torch.float32).to(aligned.device)
