"""Under DeepSpeed's ZeRO, on the CPU with gloo; and what accelerate does under its offload. Each in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .tiny import tool

tool("deepspeed")

ALLOWED = {"zero_allow_untested_optimizer": True}
KEPT = {**ALLOWED, "zero_force_ds_cpu_optimizer": False}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}


def config(stage: int, **more: Any) -> dict[str, Any]:
    """DeepSpeed's configuration, with ``offload_optimizer`` among ZeRO's where it is asked for."""
    offload = OFFLOAD if more.pop("offload", False) else {}
    shared = {"train_micro_batch_size_per_gpu": 8, "gradient_clipping": 0.1}
    return {**shared, "zero_optimization": {"stage": stage, **offload}, **more}


def zero(folder: Path, world: int, *configs: dict[str, Any]) -> list[tuple[str, str]]:
    """Output and errors of every rank."""
    script = str(Path(__file__).with_name("zero.py"))
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(folder), str(rank), str(world), json.dumps(configs)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        return [process.communicate(timeout=240) for process in ranks]
    finally:
        for process in ranks:
            process.kill()  # where one has died the others wait for it


TRIED = {
    "ZeRO 1, 2 and 3, two ranks": (2, [config(stage, **ALLOWED) for stage in (1, 2, 3)]),
    "offloaded, bfloat16": (1, [config(2, offload=True, **KEPT), config(1, bf16={"enabled": True}, **ALLOWED)]),
}


@pytest.mark.parametrize("name", TRIED)
def test_a_loaded_engine_equals_the_uninterrupted_one(tmp_path: Path, name: str) -> None:
    """Values and 8-bit state, resident and paged, on as many ranks as saved them, bit for bit."""
    world, configs = TRIED[name]
    for output, errors in zero(tmp_path, world, *configs):
        assert "RESULT" in output, errors[-3000:]
        equal = dict.fromkeys(("values", "step", "exp_avg_codes", "exp_avg_scale"), True)
        assert json.loads(output.partition("RESULT")[2]) == [equal] * (2 * len(configs))


@pytest.mark.parametrize(
    ("refused", "way_out"),
    [
        (config(2), '"zero_allow_untested_optimizer": true'),
        (config(2, offload=True, **ALLOWED), '"zero_force_ds_cpu_optimizer": false'),
    ],
    ids=["untested", "offloaded"],
)
def test_without_its_flags_deepspeed_refuses(tmp_path: Path, refused: dict[str, Any], way_out: str) -> None:
    ((output, errors),) = zero(tmp_path, 1, refused)
    assert "RESULT" not in output
    assert way_out in errors


TRAP = """
import os, sys, warnings
import deepspeed.ops.adam, torch
from accelerate import Accelerator, DeepSpeedPlugin
from lionbits import Lion8bit

class Adam:
    def __init__(self, *args, **kwargs):
        print("replaced by DeepSpeedCPUAdam", kwargs["lr"])
        sys.exit()

deepspeed.ops.adam.DeepSpeedCPUAdam = Adam  # the real one takes a minute to compile
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
config = {"train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 1, "zero_optimization": zero}
if sys.argv[1] == "keep":
    config |= {"zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True}
plugin = DeepSpeedPlugin(hf_ds_config=config) if sys.argv[1] != "simple" else DeepSpeedPlugin(
    zero_stage=2, offload_optimizer_device="cpu")
accelerator = Accelerator(deepspeed_plugin=plugin)
model = torch.nn.Linear(64, 70)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    optimizer = Lion8bit(model.parameters(), lr=0.25)
print(*(str(warning.message) for warning in caught))
if sys.argv[1] == "simple":
    accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 8
model, optimizer = accelerator.prepare(model, optimizer)
print("kept", type(optimizer.optimizer.optimizer).__name__)
"""


@pytest.mark.parametrize("kind", ["config", "simple", "keep"])
def test_the_trap_is_real_and_warned_of(tmp_path: Path, kind: str) -> None:
    """accelerate puts Adam in Lion's place exactly where Lion has warned that it will."""
    pytest.importorskip("accelerate", reason="nox -s ecosystem has accelerate")
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [sys.executable, "-c", TRAP, kind]
    environment = os.environ | ranks | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
    )
    warned = "replaces this Lion by DeepSpeedCPUAdam" in done.stdout
    assert ("replaced by DeepSpeedCPUAdam 0.25" in done.stdout) == warned == (kind != "keep"), done.stderr[-3000:]
    assert ("kept Lion8bit" in done.stdout) == (kind == "keep")
