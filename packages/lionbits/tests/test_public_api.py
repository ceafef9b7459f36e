"""Nobody's program breaks unnoticed: what is public, and how it is called, is a text that a change has to change."""

from __future__ import annotations

import importlib.util

import pytest

from .public_api import FILE, MODULES, listing

NEEDS = {"lionbits_triton": "triton"}


@pytest.mark.parametrize("module", MODULES)
def test_the_public_api_is_what_the_file_says(module: str) -> None:
    """What differs is meant or a mistake; where it is meant, ``public_api.py`` writes the file again."""
    needed = NEEDS.get(module.partition(".")[0])
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not to be had on this system")
    recorded = [part for part in FILE.read_text(encoding="utf-8").split("\n\n") if part.startswith(f"# {module}\n")]
    way_out = f"If that is meant: python {FILE.with_suffix('.py')}"
    assert [part.rstrip("\n") for part in recorded] == [listing(module).rstrip("\n")], way_out


def test_the_file_has_no_other_modules() -> None:
    """A module that is no longer listed leaves nothing behind."""
    headings = [line for line in FILE.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    assert headings == [f"# {module}" for module in MODULES]
