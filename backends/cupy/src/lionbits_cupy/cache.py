"""A cache of build results on disk: files named by a key, each with the digest of its content.

Any number of processes may read and write at once, and any may be killed meanwhile: a file gets its name when it is
complete, and one whose digest is wrong is built anew. Nothing is locked: processes that build the same key build the
same bytes, and the last one's stay.

The content is run as code. So only plain files that this user (or root) owns and nobody else can write are read; links
are not followed, and a pipe is not waited for. Anything else is built anew, as if it were damaged.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import secrets
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lionbits_reference.spec import CACHE, cache_folder

#: Flags to open a file: links are not followed, and pipes not waited for. Windows has neither.
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

#: Seconds after which a file that is still being written has lost its writer.
STALE = 3600

_logger = logging.getLogger("lionbits_cupy")
_failures = itertools.count()  # of writes in this process: a warning for the first is enough


def get(key: str, make: Callable[[], bytes]) -> bytes:
    """Return the bytes of ``make`` for this key, from the cache if any process has built them before.

    Args:
        key: names all that the bytes depend on; a file name.
        make: builds them.
    """
    try:
        path = folder() / key
    except RuntimeError:  # an account without a home
        _warn("")
        return make()
    payload = _read(path)
    if payload is None:
        payload = make()
        _write(path, payload)
    return payload


def folder() -> Path:
    """Return the folder of the cache: ``LIONBITS_CACHE``, else ``lionbits/cupy`` among the caches of the user."""
    return cache_folder("cupy")


def _sealed(key: str, payload: bytes) -> bytes:
    """Return the content of a file. The digest covers the key too, so that a renamed file is refused."""
    return hashlib.sha256(key.encode() + payload).digest() + payload


def _content(path: Path) -> bytes | None:
    """Return the content of a cache file; None if there is none.

    Raises:
        PermissionError: there is something else, which is not to be trusted; says what.
    """
    try:
        handle = os.open(path, _READ)
    except OSError:  # mostly, there is none
        if path.is_symlink():
            raise PermissionError("it is a link") from None
        return None
    try:
        if reason := _distrust(os.fstat(handle)):
            raise PermissionError(reason)
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def _distrust(found: os.stat_result) -> str:
    """Return the reason why a file must not be used (another user may have written it), or an empty string."""
    if not stat.S_ISREG(found.st_mode):
        return "it is no plain file"
    if sys.platform == "win32":  # where the folder's own permissions decide
        return ""
    if found.st_uid not in (os.geteuid(), 0):
        return f"it belongs to user {found.st_uid}"
    return "other users can write it" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


def _read(path: Path) -> bytes | None:
    try:
        content = _content(path)
    except OSError as error:
        _logger.warning("%s is not used, as %s; it is built anew", path, error)
        return None
    if content is None:
        return None
    payload = content[hashlib.sha256().digest_size :]
    if content == _sealed(path.name, payload):
        return payload
    _logger.warning("%s is damaged and is built anew", path)
    return None


def _write(path: Path, payload: bytes) -> None:
    content = _sealed(path.name, payload)
    temporary = path.with_name(f"lionbits-{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(path.parent)
        try:
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if not _holds(path, content):  # Windows replaces no file that somebody reads, but then it is there
            _warn(f" in {path.parent} ({error})")


def _holds(path: Path, content: bytes) -> bool:
    try:
        return _content(path) == content
    except OSError:
        return False


def _sweep(where: Path) -> None:
    """Remove files that killed writers left."""
    for leftover in where.glob("lionbits-*.tmp"):
        with suppress(OSError):  # somebody else was quicker, or it is somebody else's
            found = leftover.lstat()
            if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > STALE:
                leftover.unlink()


def _warn(where: str) -> None:
    if next(_failures) == 0:
        _logger.warning(
            "compiled CUDA kernels cannot be kept%s, so every process compiles its own; set %s to a folder that can be "
            "written to",
            where,
            CACHE,
        )
