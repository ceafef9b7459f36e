"""Whose files the disk cache reads: those of this user alone, and never through a link or from a pipe."""

from __future__ import annotations

import itertools
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from lionbits_cupy import cache

from .test_cache import BYTES, KEY, make, refuse

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="owners, modes, links and pipes of POSIX")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds something, in a process that has not warned yet."""
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_failures", itertools.count())
    cache.get(KEY, make)
    return tmp_path / "cache"


def get_in_time() -> bytes:
    """What the cache says within seconds: who waits for the writer of a pipe waits for good."""
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(cache.get(KEY, lambda: b"made again")), daemon=True)
    reader.start()
    reader.join(20)
    assert found, "the cache hangs"
    return found[0]


def assert_it_is_built_anew(path: Path, words: str, caplog: pytest.LogCaptureFixture) -> None:
    """Once, with a warning that says why; then the file is ours."""
    assert get_in_time() == b"made again"
    assert cache.get(KEY, refuse) == b"made again"
    [warning] = caplog.records
    assert str(path) in warning.getMessage()
    assert words in warning.getMessage()
    assert stat.S_ISREG(path.lstat().st_mode)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_built_anew(folder: Path, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    (folder / KEY).chmod(mode)
    assert_it_is_built_anew(folder / KEY, "other users can write it", caplog)


def test_a_file_of_another_user_is_built_anew(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    try:
        os.chown(folder / KEY, 12345, -1)
    except OSError as error:
        pytest.skip(f"this user cannot give files away: {error}")
    assert_it_is_built_anew(folder / KEY, "it belongs to user 12345", caplog)


@pytest.mark.parametrize("user", [0, 7], ids=["root's", "its own"])
def test_files_of_root_are_read_by_all(user: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of an image are; who is root can do anything anyway."""
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda handle: os.stat_result((*real(handle)[:4], user, *real(handle)[5:])))
    assert cache.get(KEY, refuse) == BYTES


def test_a_link_is_not_followed(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither to read, nor to write what is built."""
    elsewhere = tmp_path / "elsewhere"
    (folder / KEY).rename(elsewhere)
    (folder / KEY).symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    assert_it_is_built_anew(folder / KEY, "it is a link", caplog)
    assert elsewhere.read_bytes() == before


def test_a_pipe_is_not_waited_for(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / KEY).unlink()
    os.mkfifo(folder / KEY)
    assert_it_is_built_anew(folder / KEY, "it is no plain file", caplog)


def test_a_folder_in_the_place_of_a_file(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It cannot be replaced: every process builds its own, and logs why."""
    (folder / KEY).unlink()
    (folder / KEY).mkdir()
    assert get_in_time() == b"made again"
    assert cache.get(KEY, make) == BYTES
    messages = [record.getMessage() for record in caplog.records]
    assert any("it is no plain file" in message for message in messages)
    assert any("cannot be kept" in message for message in messages)


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022])
def test_what_is_kept_is_the_users_own_whatever_the_umask(mask: int, folder: Path, tmp_path: Path) -> None:
    """With a umask of 002, which is usual, its own files would be refused else."""
    before = os.umask(mask)
    try:
        os.environ[cache.CACHE] = str(tmp_path / "new" / "cache")  # the fixture puts it back
        cache.get(KEY, make)
    finally:
        os.umask(before)
    assert cache.get(KEY, refuse) == BYTES
    assert stat.S_IMODE((tmp_path / "new" / "cache").stat().st_mode) == 0o700


def test_leftovers_of_writers_are_files(folder: Path) -> None:
    """What killed writers left goes; a link or a pipe of such a name is somebody's."""
    names = ["lionbits-0.tmp", "lionbits-1.tmp"]
    (folder / names[0]).symlink_to(folder / "nowhere")
    os.mkfifo(folder / names[1])
    os.utime(folder / names[1], (0, 0))
    cache.get("another", make)
    assert {path.name for path in folder.iterdir()} == {KEY, "another", *names}
