"""Real text that every machine already has: the sources of Python's own standard library.

Nothing is downloaded, and one installation always yields the same bytes: which files are used depends on
their names alone, never on the order in which the file system lists them. Whole files are held out for
validation, so no part of the validation text was ever trained on.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .console import CommandError

# Tests, other people's packages, and code-shaped data (character maps, generated documentation) teach little.
SKIPPED_FOLDERS = frozenset(
    [
        "test",
        "tests",
        "idle_test",
        "idlelib",
        "lib2to3",
        "site-packages",
        "dist-packages",
        "ensurepip",
        "encodings",
        "pydoc_data",
        "turtledemo",
        "lib-dynload",
        "__pycache__",
        "__phello__",
    ]
)
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")  # what the build machine left behind
CAP = 4_000_000  # bytes of training text: loads in a fraction of a second, and a laptop does not see it twice
HELD_OUT = 0.1  # of the files, and at most this share of the cap
SEPARATOR = b"\n\n"


@dataclass(frozen=True)
class Corpus:
    """Training and validation bytes, the files they came from, and a digest that resuming compares."""

    train: Tensor
    held_out: Tensor
    train_files: tuple[str, ...]
    held_out_files: tuple[str, ...]
    digest: str


def standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def python_files(root: Path) -> list[str]:
    """Names of the source files under ``root``, relative, with ``/`` on every system, sorted."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith(SKIPPED_PREFIXES)]
        sources = (n for n in names if n.endswith(".py") and not n.startswith(SKIPPED_PREFIXES))
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in sources]
    return sorted(found)


def rank(name: str) -> float:
    """Map a file name to a fixed number in [0, 1), by which files are held out and chosen up to the cap.

    Python's own ``hash`` differs from process to process, hence SHA-256.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


@lru_cache(maxsize=2)
def load(root: Path | None = None, cap: int = CAP) -> Corpus:
    """Read the corpus in the order of rank, so that a smaller cap is a sample and not "a" to "d"."""
    root = root or standard_library()
    names = sorted(python_files(root), key=rank)
    held_out = [name for name in names if rank(name) < HELD_OUT]
    train = [name for name in names if rank(name) >= HELD_OUT]
    train_text, train_files = _gather(root, train, cap)
    held_out_text, held_out_files = _gather(root, held_out, round(cap * HELD_OUT))
    if not train_text or not held_out_text:
        raise CommandError(f"no Python sources to train on under {root}: this Python ships without its library's text")
    digest = hashlib.sha256(train_text + b"\0" + held_out_text).hexdigest()[:16]
    return Corpus(_as_tensor(train_text), _as_tensor(held_out_text), train_files, held_out_files, digest)


def _gather(root: Path, names: list[str], cap: int) -> tuple[bytes, tuple[str, ...]]:
    """The text of the first files that fit the cap together (the last one is cut to it)."""
    parts, size, used = [], 0, []
    for name in names:
        if size >= cap:
            break
        text = (root / name).read_bytes().replace(b"\r\n", b"\n")[: cap - size]
        if text:
            parts.append(text)
            used.append(name)
            size += len(text) + len(SEPARATOR)
    return SEPARATOR.join(parts), tuple(used)


def _as_tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (the same windows, one byte later) as int64 of shape (len(starts), context)."""
    rows = text[starts[:, None] + torch.arange(context + 1)].long()
    return rows[:, :-1], rows[:, 1:]


def training_batch(text: Tensor, seed: int, step: int, batch: int, context: int) -> tuple[Tensor, Tensor]:
    """Random windows that are a function of (seed, step) alone: resuming needs no generator state."""
    mixed = hashlib.sha256(f"{seed}:{step}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(mixed, "big") >> 1)
    starts = torch.randint(len(text) - context, (batch,), generator=generator)
    return windows(text, starts, context)


def validation_windows(text: Tensor, count: int, context: int) -> tuple[Tensor, Tensor]:
    """``count`` windows spread evenly over the held-out text: the same for every variant and every step."""
    room = len(text) - context
    starts = torch.arange(count) * room // count
    return windows(text, starts, context)
