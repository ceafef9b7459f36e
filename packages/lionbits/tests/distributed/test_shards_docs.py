"""What docs/distributed.md shows is what happens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..family import assert_same
from ..pages import due, run
from .problem import states, whole
from .world import World


def runs(folder: str) -> None:
    """The blocks about FSDP2 and checkpoints, one after the other; then what they say about themselves."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        names: dict[str, Any] = {}
        for section in due(__file__):
            names = run(section, **names)
    finally:
        os.chdir(before)
    assert_same(states(names["resumed"]), states(names["optimizer"]))
    for param, other in zip(names["resumed_model"].parameters(), names["model"].parameters(), strict=True):
        assert_same(whole(param), whole(other))
        assert names["optimizer"].state[other]["step"] == 2
    assert "exp_avg_codes" in names["optimizer"].state[names["model"][0].weight]


def test_its_code_runs_as_it_stands(world: World, tmp_path: Path) -> None:
    world(runs, str(tmp_path))
