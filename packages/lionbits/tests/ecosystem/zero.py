"""A life under DeepSpeed's ZeRO, in a process of its own: trained, saved, continued; loaded and continued again.

Usage: python zero.py FOLDER RANK WORLD CONFIGS, the last a list in JSON. Prints what was compared under each, in JSON.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
from torch import distributed, nn

from lionbits import Lion8bit, PagedLion8bit

folder, rank, world, configs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(world), "DS_ACCELERATOR": "cpu"}

import deepspeed  # noqa: E402  # it reads the environment

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo will do; that one takes a minute to compile


def engine(optimizer_class: type[Lion8bit], config: dict[str, Any]) -> Any:
    """DeepSpeed's engine around a small network, whose 4,763 elements two ranks share with one of padding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 70), nn.ReLU(), nn.Linear(70, 3))
    optimizer = optimizer_class(model.parameters(), lr=1e-2, weight_decay=0.1, min_8bit_size=512)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def train(engine: Any, steps: range) -> None:
    """Each rank with data of its own, in the model's dtype."""
    for step in steps:
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(2 * step + rank))
        engine.backward(engine(x.to(next(engine.module.parameters()).dtype)).square().mean())
        engine.step()


def outcome(engine: Any) -> dict[str, Any]:
    """What this rank has: the whole model, and the state of its partition of it."""
    (state,) = engine.optimizer.optimizer.state.values()
    params = list(engine.module.parameters())
    with deepspeed.zero.GatheredParameters(params, enabled=engine.zero_optimization_partition_weights()):
        values = torch.cat([param.detach().flatten() for param in params])
    return {"values": values, **state}


def equal(tag: str, optimizer_class: type[Lion8bit], config: dict[str, Any]) -> dict[str, bool]:
    """Which parts of the outcome are the same, whether training was uninterrupted or loaded after the third step."""
    whole = engine(optimizer_class, config)
    train(whole, range(3))
    whole.save_checkpoint(folder, tag=tag)
    train(whole, range(3, 6))
    resumed = engine(optimizer_class, config)
    resumed.load_checkpoint(folder, tag=tag)
    train(resumed, range(3, 6))
    one, other = outcome(whole), outcome(resumed)
    assert one["exp_avg_codes"].dtype == torch.uint8
    assert one["exp_avg_codes"].any()
    return {k: torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k] for k, v in one.items()}


distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
deepspeed.init_distributed("gloo")
same = [
    equal(f"{place}-{optimizer_class.__name__}", optimizer_class, config)
    for place, config in enumerate(configs)
    for optimizer_class in (Lion8bit, PagedLion8bit)
]
distributed.destroy_process_group()
print("RESULT" + json.dumps(same))
