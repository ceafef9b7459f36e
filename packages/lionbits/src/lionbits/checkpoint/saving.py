"""Atomic writing of files: each is written under a temporary name, synced, and renamed in one step.

A process that dies at any moment, or a full disk, leaves the previous file as it was.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

if sys.platform != "win32":
    import fcntl

#: Suffix of a file's name while it is written: 8 random bytes, so that writers do not collide.
_TEMPORARY = r"\.[0-9a-f]{16}\.tmp"

#: Bytes of that, and of the longest name where the system does not say.
_ADDED, _LONGEST = 21, 255


def save(obj: object, path: str | os.PathLike[str]) -> None:
    """``torch.save`` that never leaves half a file: ``path`` holds the old checkpoint or the new one, at any moment.

    When it returns the disk has the new one (fsync). What earlier processes left when they were killed while saving to
    this path is removed. A file that is replaced hands on its mode and, where the system permits it, its owner and
    group. A character device and a pipe are written to, as ``open()`` does: they stay what they are.

    Args:
        obj: what ``torch.save`` takes.
        path: of the file, in a folder that is there. A link is followed, and stays.

    Raises:
        OSError: it cannot be written (the disk is full, say); the old file stays.
    """
    with whole(path) as stream:
        watched = _Watched(stream)
        try:
            torch.save(obj, cast(BinaryIO, watched))
        except RuntimeError:
            if watched.error is not None:  # torch's writer of zip files has an error of its own for that
                raise watched.error from None
            raise


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a stream whose content replaces ``path`` when all of it is on disk; after an error ``path`` is unchanged.

    A character device or a pipe at ``path`` is written to directly.

    What is at ``path`` and is no file, but can be written to (a character device, a pipe), is written to at once.

    Raises:
        OSError: the file cannot be written; what was at ``path`` stays.
    """
    place, before = Path(os.path.realpath(path)), _target(path)
    if before is not None and not stat.S_ISREG(before.st_mode):
        with Path(path).open("wb") as device:
            yield device
        return
    if not place.parent.is_dir():  # else the error would name a file that nobody asked for
        hint = "there is no such folder; make it before saving to a file in it"
        raise FileNotFoundError(errno.ENOENT, hint, str(place.parent))
    remove_leftovers(place)
    temporary, stream = _begin(place, before)
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
    """Remove temporary files that killed processes left while writing ``path``. Files being written now stay.

    Where the two cannot be told apart (a file system without locks, a file of another user), the file stays.
    """
    place = Path(os.path.realpath(path))
    name = re.compile(re.escape(_stem(place)) + _TEMPORARY)
    for left in place.parent.glob("*.tmp"):
        if name.fullmatch(left.name):
            # another process may have removed it, or it is another user's, or, on Windows, open
            with contextlib.suppress(FileNotFoundError, PermissionError):
                _remove_unclaimed(left)


def _remove_unclaimed(left: Path) -> None:
    if not stat.S_ISREG(left.lstat().st_mode):  # a pipe, say, is nobody's half of a file
        return
    if sys.platform == "win32":
        left.unlink()  # which is refused while a process has it open
        return
    with left.open("r+b") as stream:
        if _claimed(stream, wait=False):
            left.unlink()


class _Watched:
    """A stream for writing that remembers the system error that ended it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self._stream.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._stream.flush()


def _target(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Return the status of what is at the path, links followed; None if nothing is.

    Raises:
        OSError: it cannot be written to, or is a folder, a socket or a block device.
    """
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not any(kind(found.st_mode) for kind in (stat.S_ISREG, stat.S_ISCHR, stat.S_ISFIFO)):
        raise OSError(errno.EINVAL, "neither a file, a pipe nor a character device; save to another path", str(path))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return found


def _begin(place: Path, before: os.stat_result | None) -> tuple[Path, BinaryIO]:
    """Create a locked temporary file beside ``place``, with the mode of the file that it replaces.

    Until its mode is set only this user can read it: the file that it replaces may be private.
    """
    mode = 0o666 if before is None else 0o600
    while True:
        temporary = place.with_name(f"{_stem(place)}.{secrets.token_hex(8)}.tmp")
        stream = open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        try:
            if before is not None:
                _hand_on(before, stream)
            _claimed(stream, wait=True)  # for somebody who takes it for a leftover just now
            if temporary.exists():  # nobody had removed it before it was claimed
                return temporary, stream
        except BaseException:
            stream.close()
            temporary.unlink(missing_ok=True)
            raise
        stream.close()


def _hand_on(before: os.stat_result, stream: BinaryIO) -> None:
    """Give an empty file the owner, group and mode of another, as far as the system permits."""
    if sys.platform == "win32":
        return
    now = os.fstat(stream.fileno())
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        try:
            os.fchown(stream.fileno(), before.st_uid, before.st_gid)
        except OSError:
            with contextlib.suppress(OSError):  # the group alone may be permitted
                os.fchown(stream.fileno(), -1, before.st_gid)
    with contextlib.suppress(PermissionError):  # some file systems have no modes
        os.fchmod(stream.fileno(), stat.S_IMODE(before.st_mode))


def _stem(place: Path) -> str:
    """Return the prefix of temporary names: the file's name, or a digest of it if that would be too long."""
    longest = _LONGEST
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows, or a file system that does not say
        longest = os.pathconf(place.parent, "PC_NAME_MAX")
    name = os.fsencode(place.name)
    return place.name if len(name) + _ADDED <= longest else hashlib.sha256(name).hexdigest()[:32]


def _claimed(stream: BinaryIO, *, wait: bool) -> bool:
    """Lock the file and return True if this process holds it alone. The lock ends with the stream or the process."""
    if sys.platform == "win32":
        return True  # nobody can remove an open file there
    try:
        fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody else has it, or the file system knows no locks
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Sync a folder, so that the new name is on disk; Windows and some network disks cannot."""
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
