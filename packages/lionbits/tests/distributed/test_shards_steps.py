"""N ranks with parts equal one with everything, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lionbits import Lion

from .problem import SETTINGS, Bag, assert_equal, sharded, train
from .world import World, meshes, takes_part

BITS = (32, 8, 4, 2)
FORMS: dict[str, dict[str, Any]] = {
    "float32, dithered": {},
    "float32, stochastic, clipped by percentile": {"rounding": "stochastic", "percentile_clipping": 30},
    "float32, nearest, clipped by norm": {"rounding": "nearest", "grad_clip": 3.0, "maximize": True},
    "bfloat16, dithered, cautious": {"param_rounding": "dithered", "cautious": "mask", "percentile_clipping": 50},
    "bfloat16, stochastic, one scale per tensor": {"param_rounding": "stochastic", "block_wise": False},
    "bfloat16, compensated": {"param_rounding": "compensated", "cautious": "c-optim"},
    "bfloat16, compensated to 24 bits": {"param_rounding": "compensated", "master_bits": 24, "cautious": "gradient"},
}


def dtype_of(form: str) -> torch.dtype:
    return torch.bfloat16 if form.startswith("bfloat16") else torch.float32


def equals_the_whole(form: str, ranks: int | str) -> None:
    """At each number of bits: a step after the other, with plain tensors among the parameters."""
    if not takes_part(ranks):
        return
    for bits in BITS:
        module = Bag(dtype_of(form))
        parts = sharded(module, meshes()[ranks])
        settings = {**SETTINGS, **FORMS[form], "optim_bits": bits}
        optimizer, other = Lion(module.parameters(), **settings), Lion(parts.parameters(), **settings)
        for step in (1, 2, 3):
            train(module, optimizer, [step])
            train(parts, other, [step])
            assert_equal(parts, other, module, optimizer, f"{bits} bits, step {step}")
        assert other._step_cache is not None


@pytest.mark.filterwarnings("ignore:optim_bits=2")
@pytest.mark.parametrize("ranks", [1, 2, 4, "2x2"])
@pytest.mark.parametrize("form", FORMS)
def test_shards_equal_the_whole(world: World, form: str, ranks: int | str) -> None:
    """fully_shard over 1, 2 and 4 ranks, and over 2 with copies on 2 (HSDP): even, uneven and empty parts."""
    world(equals_the_whole, form, ranks)
