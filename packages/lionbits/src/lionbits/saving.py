"""Files that are whole: written beside their place, brought to disk, and moved there in one step.

A process that dies at any moment, or a disk that is full, leaves the previous file as it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch

if sys.platform != "win32":
    import fcntl

#: What the name of a file ends with while it is written: 8 random bytes, so that writers do not meet.
_TEMPORARY = r"\.[0-9a-f]{16}\.tmp"


def save(obj: object, path: str | os.PathLike[str]) -> None:
    """``torch.save`` that never leaves half a file: ``path`` holds the old checkpoint or the new one, at any moment.

    When it returns the disk has the new one (fsync). What earlier processes left when they were killed while saving to
    this path is removed.

    Args:
        obj: what ``torch.save`` takes.
        path: of the file, in a folder that is there. A link is followed.

    Raises:
        OSError: it cannot be written; the old file stays.
    """
    with whole(path) as stream:
        torch.save(obj, stream)


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream whose content takes its place at ``path`` when all of it is on disk; after an error, never.

    Raises:
        OSError: the file cannot be written; what was at ``path`` stays.
    """
    place = Path(os.path.realpath(path))
    if not place.parent.is_dir():  # else the error would name a file that nobody asked for
        hint = "there is no such folder; make it before saving to a file in it"
        raise FileNotFoundError(errno.ENOENT, hint, str(place.parent))
    remove_leftovers(place)
    temporary, stream = _begin(place)
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            if sys.platform == "win32":
                stream.close()  # Windows moves no open file; elsewhere it stays open, as that is what claims it
            temporary.replace(place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(place.parent)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what killed processes left of their attempts to write ``path``. What is being written now stays.

    Where nobody can tell the two apart (a file system without locks, a file of another user), it stays as well.
    """
    place = Path(os.path.realpath(path))
    name = re.compile(re.escape(place.name) + _TEMPORARY)
    for left in place.parent.glob("*.tmp"):
        if name.fullmatch(left.name):
            # another process may have removed it, or it is another user's, or, on Windows, open
            with contextlib.suppress(FileNotFoundError, PermissionError):
                _remove_unclaimed(left)


def _remove_unclaimed(left: Path) -> None:
    if sys.platform == "win32":
        left.unlink()  # which is refused while a process has it open
        return
    with left.open("r+b") as stream:
        if _claimed(stream, wait=False):
            left.unlink()


def _begin(place: Path) -> tuple[Path, BinaryIO]:
    """A new file beside ``place``, which nobody takes for a leftover as long as it is open."""
    while True:
        temporary = place.with_name(f"{place.name}.{secrets.token_hex(8)}.tmp")
        stream = temporary.open("xb")
        _claimed(stream, wait=True)  # for somebody who takes it for a leftover just now
        if temporary.exists():  # nobody had removed it before it was claimed
            return temporary, stream
        stream.close()


def _claimed(stream: BinaryIO, *, wait: bool) -> bool:
    """Whether this process has the file for itself now; a claim ends with the stream, or the process."""
    if sys.platform == "win32":
        return True  # nobody can remove an open file there
    try:
        fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody else has it, or the file system knows no locks
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Bring the new name to disk, where folders can be synced: on Windows and some network disks they cannot."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
