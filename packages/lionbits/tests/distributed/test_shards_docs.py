"""What the first half of docs/distributed.md shows is what happens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..family import assert_same
from .problem import states, whole
from .world import World

PAGE = Path(__file__).parents[4] / "docs" / "distributed.md"


def runs(folder: str) -> None:
    """The blocks about FSDP2 and checkpoints, one after the other; then what they say about themselves."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        seen: dict[str, Any] = {}
        ours = PAGE.read_text(encoding="utf-8").split("## DDP")[0]
        for block in ours.split("```python\n")[1:]:
            exec(block.split("```")[0], seen)
    finally:
        os.chdir(before)
    assert_same(states(seen["resumed"]), states(seen["optimizer"]))
    for param, other in zip(seen["resumed_model"].parameters(), seen["model"].parameters(), strict=True):
        assert_same(whole(param), whole(other))
        assert seen["optimizer"].state[other]["step"] == 2
    assert "exp_avg_codes" in seen["optimizer"].state[seen["model"][0].weight]


def test_its_code_runs_as_it_stands(world: World, tmp_path: Path) -> None:
    world(runs, str(tmp_path))
