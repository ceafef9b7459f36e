"""The launches of a steady step do not depend on the number of tensors, on simulated devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from .simulated import simulated
from .test_simulated_cuda import optimizer_of

SETTINGS: dict[str, dict[str, Any]] = {
    "32 bits": {},
    "8 bits": {"optim_bits": 8},
    "4 bits": {"optim_bits": 4},
    "grad_clip": {"optim_bits": 8, "grad_clip": 0.5},
    "percentile_clipping": {"optim_bits": 8, "percentile_clipping": 50},
    "one scale": {"optim_bits": 8, "block_wise": False},
    "cautious": {"optim_bits": 8, "cautious": "mask"},
    "all of these": {
        "optim_bits": 8,
        "block_wise": False,
        "cautious": "mask",
        "grad_clip": 0.5,
        "percentile_clipping": 50,
    },
}


def launches(backend: str, settings: dict[str, Any], tensors: int) -> int:
    """Launches of a step, as the simulated device counts them: of kernels, and of torch's operators."""
    with simulated(0, backend) as devices:
        params = [nn.Parameter(torch.ones(128, device="cuda")) for _ in range(tensors)]
        optimizer = optimizer_of(params, backend, **settings)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        before = devices.counts["launches"]
        optimizer.step()
        return devices.counts["launches"] - before


@pytest.mark.parametrize("backend", ["cupy", pytest.param("triton", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SETTINGS)
def test_launches_do_not_grow_with_the_number_of_tensors(name: str, backend: str) -> None:
    few, many = (launches(backend, SETTINGS[name], tensors) for tensors in (3, 300))
    assert few == many
