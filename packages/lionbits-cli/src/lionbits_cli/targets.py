"""Checks of output paths before any work is done, not after an hour of training."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .console import CommandError

#: Bytes that a folder must have room for: a small chart and the numbers; what a checkpoint takes is not known yet.
ROOM = 1 << 18


def path(text: str) -> Path:
    """Return a path of the command line, for argparse.

    Raises:
        ValueError: it is empty, which would be this folder, or has a zero byte, which no system takes.
    """
    if not text or "\0" in text:
        raise ValueError(text)
    return Path(text)


def check_source(source: Path) -> None:
    """Refuse devices and pipes, which have no end or wait for a writer.

    Raises:
        CommandError.
    """
    if source.exists() and not source.is_file():
        raise CommandError(f"cannot read {source}: it is no file")


def prepare_folder(folder: Path, names: Sequence[str]) -> None:
    """Make a folder, and check that files of these names can be written to it.

    Raises:
        CommandError: they cannot; says why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            _check_replaceable(folder / name)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(ROOM))
            probe.flush()
    except OSError as error:
        raise CommandError(f"cannot write to the folder {folder}: {error.strerror or error}") from error


def check_new(target: Path) -> None:
    """Check that a new file can be made.

    Raises:
        CommandError: it is there already, or cannot be; says why.
    """
    try:
        there = os.path.lexists(target)
        if not there:
            with tempfile.TemporaryFile(dir=target.parent) as probe:
                probe.write(bytes(ROOM))
                probe.flush()
    except OSError as error:
        raise CommandError(f"cannot write {target}: {error.strerror or error}") from error
    if there:
        raise CommandError(f"{target} exists already")


def _check_replaceable(target: Path) -> None:
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{target.name} is a folder")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, f"{target.name} may not be written")
