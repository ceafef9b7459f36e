"""The scripts in examples/: each runs as it is, and says at its end that something was learned."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .tiny import tool

EXAMPLES = Path(__file__).parents[4] / "examples"

#: What each script imports beside torch and lionbits, and arguments that make it write where the test looks.
NEEDS = {
    "plain_torch.py": ([], ["--checkpoint", "it.pt"]),
    "with_trainer.py": (["transformers", "accelerate"], ["--output", "."]),
    "with_lightning.py": (["lightning"], ["--output", "."]),
    "with_accelerate.py": (["accelerate"], ["--state", "state"]),
    "with_lora.py": (["transformers", "peft"], ["--output", "adapters"]),
    "compare_lora.py": (
        ["transformers", "peft"],
        ["--steps", "20", "--base-steps", "80", "--seeds", "1", "--width", "64", "--lr", "1e-3"],
    ),
    "paged.py": ([], ["--dir", "."]),
    "tensor_parallel.py": ([], []),
}

WRITTEN = {
    "plain_torch.py": "it.pt",
    "with_trainer.py": "checkpoint-40/optimizer.pt",
    "with_lightning.py": "checkpoints/*.ckpt",
    "with_accelerate.py": "state/optimizer.bin",
    "with_lora.py": "adapters/adapter_model.safetensors",
}


#: What starts a script that wants several processes.
STARTERS = {"tensor_parallel.py": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]}


def run(folder: Path, name: str, *arguments: str) -> str:
    """Output of an example, as a user would start it."""
    command = [sys.executable, *STARTERS.get(name, []), str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_runs_and_learns(tmp_path: Path, name: str) -> None:
    tools, arguments = NEEDS[name]
    for needed in tools:
        tool(needed)
    output = run(tmp_path, name, *arguments)
    losses = [float(found) for found in re.findall(r"loss'?:? '?(\d+\.\d+)", output)]
    untrained = {"paged.py": 1.05}.get(name, 5.5)  # noise has variance 1; a byte is one of 256
    assert losses[-1] < min(untrained, losses[0] + 0.01), output
    if name in WRITTEN:
        assert len(list(tmp_path.glob(WRITTEN[name]))) == 1


def test_plain_torch_resumes_where_it_stopped(tmp_path: Path) -> None:
    """The checkpoint of a run is continued by a longer one, rather than begun again."""
    run(tmp_path, "plain_torch.py", "--steps", "5", "--checkpoint", "it.pt")
    output = run(tmp_path, "plain_torch.py", "--steps", "7", "--checkpoint", "it.pt")
    assert re.findall(r"step (\d+):", output) == ["7"]


def test_every_example_is_tried_listed_and_short() -> None:
    names = {file.name for file in EXAMPLES.glob("*.py")}
    assert names == NEEDS.keys()
    listed = re.findall(r"^\| \[(\w+\.py)\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(names)
    assert all(len((EXAMPLES / name).read_text().splitlines()) < 80 for name in names)
