"""The Python in this repository's Markdown: every block is run by a test, in order, beside the others of its page.

A page, or a section of it, that wants more than the names of :func:`run` stands in ``ELSEWHERE``, with the test that
runs it. All others are run by test_pages.py: a new page is, without anybody's doing.
"""

from __future__ import annotations

import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[3]
TESTS = Path(__file__).parent

#: Page, or page#section -> the file of tests that asks for it by ``due(__file__)``.
ELSEWHERE = {
    "docs/backward.md": "test_backward.py",
    "docs/checkpoints.md": "test_docs_checkpoints.py",
    "docs/distributed.md#FSDP2": "distributed/test_shards_docs.py",
    "docs/distributed.md#Checkpoints": "distributed/test_shards_docs.py",
    "docs/distributed.md#Tensor parallelism": "distributed/test_shards_docs.py",
    "docs/trainers.md#transformers Trainer": "ecosystem/test_with_docs.py",
    "docs/trainers.md#Lightning": "ecosystem/test_with_docs.py",
    "docs/trainers.md#accelerate": "ecosystem/test_with_docs.py",
    "docs/trainers.md#DeepSpeed": "ecosystem/test_with_docs.py",
    "docs/trainers.md#PEFT": "ecosystem/test_with_docs.py",
    "docs/migrating.md": "interop/test_interop_docs.py",
    "docs/writing-a-backend.md": "test_docs_backend.py",
}


class Model(nn.Module):
    """What a user has: embeddings and matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        self.linear = nn.Linear(64, 80)


@cache
def pages() -> tuple[str, ...]:
    """All Markdown, by path in the repository; environments and caches, whose names begin with a dot, are not ours."""
    ours = (folder for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    found = [*ROOT.glob("*.md"), *(page for folder in ours for page in folder.rglob("*.md"))]
    return tuple(sorted(path.relative_to(ROOT).as_posix() for path in found))


def text(page: str) -> str:
    """A page as it stands."""
    return (ROOT / page).read_text(encoding="utf-8")


def sections(page: str) -> dict[str, str]:
    """The text under each heading of the second level; "" is what comes before the first."""
    _, *pairs = re.split(r"^## (.*)\n", "## \n" + text(page), flags=re.MULTILINE)
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def blocks(piece: str, language: str = "python") -> list[str]:
    """The code of a page, or of a page#section, in one language."""
    page, _, section = piece.partition("#")
    source = sections(page)[section] if section else text(page)
    fenced = re.findall(rf"^ *```{language}\b[^\n]*\n(.*?)^ *```$", source, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in fenced]


def due(file: str) -> list[str]:
    """The pieces that a file of tests, given as its ``__file__``, has to run."""
    asking = Path(file).relative_to(TESTS).as_posix()
    return [piece for piece, test in ELSEWHERE.items() if test == asking]


def rest() -> list[str]:
    """The pieces with Python that are not due elsewhere: whole pages, and what is left of those that are shared."""
    shared = {piece.partition("#")[0] for piece in ELSEWHERE if "#" in piece}
    pieces = [page for page in pages() if page not in shared]
    pieces += [f"{page}#{section}" for page in shared for section in sections(page) if section]
    return sorted(piece for piece in pieces if piece not in ELSEWHERE and blocks(piece))


def run(piece: str, **names: Any) -> dict[str, Any]:
    """Run all Python of a piece, in order, and return the names that are left.

    Args:
        piece: a page by its path in the repository, or page#section.
        **names: that the blocks take for granted, beside ``torch`` and a ``model`` with embeddings.
    """
    seen = {"torch": torch, "model": Model(), **names}
    for place, block in enumerate(blocks(piece)):
        exec(compile(block, f"{piece}, block {place}", "exec"), seen)
    return seen
