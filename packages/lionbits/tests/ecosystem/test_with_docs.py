"""Every block of Python in docs/trainers.md runs where its tool is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from ..pages import blocks, due, run  # noqa: TID252
from .tiny import OTHERS_MAY_WARN, gpt2, texts, tool

#: What each section needs. DeepSpeed has a process of its own.
TOOLS = {
    "transformers Trainer": ["transformers", "accelerate"],
    "Lightning": ["transformers", "lightning"],
    "accelerate": ["transformers", "accelerate"],
    "PEFT": ["transformers", "peft"],
    "DeepSpeed": ["deepspeed"],
}
SECTIONS = {piece.partition("#")[2]: piece for piece in due(__file__)}
DEEPSPEED = SECTIONS["DeepSpeed"]

pytestmark = OTHERS_MAY_WARN


def test_every_section_is_tried() -> None:
    assert SECTIONS.keys() == TOOLS.keys()


@pytest.mark.parametrize("section", [section for section in TOOLS if section != "DeepSpeed"])
def test_the_blocks_of_a_section_run(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, with a tiny model and its data, in a folder of their own; something is trained by Lion."""
    for name in TOOLS[section]:
        tool(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    data = texts(16)
    names: dict[str, Any] = run(SECTIONS[section], model=gpt2(), dataset=data, loader=DataLoader(data, 4))
    assert "optimizer" in names or isinstance(names["trainer"].optimizers[0], torch.optim.Optimizer)


ENGINE = """
import json, os, sys
os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
import deepspeed, torch
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo will do; that one takes a minute to compile
torch.distributed.init_process_group("gloo", init_method="file://" + os.path.abspath("store"), rank=0, world_size=1)
deepspeed.init_distributed("gloo")
config, page = json.loads(sys.argv[1]), sys.argv[2]
names = {"model": torch.nn.Linear(64, 70), "config": {"train_micro_batch_size_per_gpu": 8, **config}}
exec(page, names)
print("made with", type(names["engine"].optimizer.optimizer).__name__)
"""


def test_the_blocks_about_deepspeed_run(tmp_path: Path) -> None:
    """The engine that they make, by the page's own configuration, has Lion in it."""
    tool("deepspeed")
    (config,) = blocks(DEEPSPEED, "json")
    command = [sys.executable, "-c", ENGINE, config, "\n".join(blocks(DEEPSPEED))]
    done = subprocess.run(
        command, env=os.environ, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
    )
    assert "made with Lion8bit" in done.stdout, done.stderr[-3000:]


def test_the_configuration_of_deepspeed_is_the_one_that_is_tried() -> None:
    tool("deepspeed")
    from .test_with_deepspeed import KEPT, OFFLOAD

    (block,) = blocks(DEEPSPEED, "json")
    assert json.loads(block) == {"zero_optimization": {"stage": 2, **OFFLOAD}, **KEPT}
