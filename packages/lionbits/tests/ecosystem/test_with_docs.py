"""Every block of Python in docs/distributed.md about somebody's tool runs where that tool is installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from .tiny import OTHERS_MAY_WARN, gpt2, texts, tool

PAGE = (Path(__file__).parents[4] / "docs" / "distributed.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))

#: What each section needs, and how many blocks it has; DeepSpeed's engine is made in test_with_deepspeed.py.
TOOLS = {
    "transformers Trainer": (["transformers", "accelerate"], 2),
    "Lightning": (["transformers", "lightning"], 1),
    "accelerate": (["transformers", "accelerate"], 1),
    "PEFT": (["transformers", "peft"], 1),
}

pytestmark = OTHERS_MAY_WARN


def blocks(section: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)


@pytest.mark.parametrize("section", TOOLS)
def test_the_blocks_of_a_section_run(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, with a tiny model and its data, in a folder of their own; something is trained by Lion."""
    tools, count = TOOLS[section]
    for name in tools:
        tool(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    data = texts(16)
    names: dict[str, Any] = {"model": gpt2(), "dataset": data, "loader": DataLoader(data, 4)}
    assert len(blocks(section)) == count
    for block in blocks(section):
        exec(compile(block, section, "exec"), names)
    assert "optimizer" in names or isinstance(names["trainer"].optimizers[0], torch.optim.Optimizer)


def test_the_configuration_of_deepspeed_is_the_one_that_is_tried() -> None:
    import json

    from .test_with_deepspeed import KEPT, OFFLOAD

    (block,) = re.findall(r"```json\n(.*?)```", SECTIONS["DeepSpeed"], re.DOTALL)
    assert json.loads(block) == {"zero_optimization": {"stage": 2, **OFFLOAD}, **KEPT}
