"""The disk cache: right bytes whatever becomes of files, folders and processes."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lionbits_cupy import cache

KEY = "a key"
BYTES = bytes(range(256)) * 300


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in a process that has not warned yet."""
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "a" / "folder"))
    monkeypatch.setattr(cache, "_failures", itertools.count())
    return tmp_path / "a" / "folder"


def make() -> bytes:
    return BYTES


def refuse() -> bytes:
    raise AssertionError("it was kept")


def test_it_is_made_once(folder: Path) -> None:
    assert cache.get(KEY, make) == BYTES
    assert cache.get(KEY, refuse) == BYTES
    assert [path.name for path in folder.iterdir()] == [KEY]
    assert cache.get("another key", lambda: b"") == b""
    assert cache.get("another key", refuse) == b""


def test_what_cannot_be_made_is_not_kept(folder: Path) -> None:
    with pytest.raises(AssertionError):
        cache.get(KEY, refuse)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LIONBITS_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c"),
        ({"LIONBITS_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/lionbits/cupy"),
        ({"LIONBITS_CACHE": "", "XDG_CACHE_HOME": "x"}, "/h/.cache/lionbits/cupy"),
        ({"LIONBITS_CACHE": "", "XDG_CACHE_HOME": ""}, "/h/.cache/lionbits/cupy"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="these are not its variables")
def test_where_it_is(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**variables, "HOME": "/h"}.items():
        monkeypatch.setenv(name, value)
    assert cache.folder() == Path(expected)


@pytest.mark.parametrize("content", ["empty", "cut in the digest", "cut", "a bit", "longer", "another key's"])
def test_a_damaged_file_is_built_anew(folder: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    cache.get(KEY, make)
    cache.get("another", lambda: b"else")
    good = (folder / KEY).read_bytes()
    damaged = {
        "empty": b"",
        "cut in the digest": good[:20],
        "cut": good[:-1],
        "a bit": good[:-1] + bytes([good[-1] ^ 1]),
        "longer": good + b"\0",
        "another key's": (folder / "another").read_bytes(),
    }
    (folder / KEY).write_bytes(damaged[content])
    assert cache.get(KEY, make) == BYTES
    assert str(folder / KEY) in caplog.text
    assert cache.get(KEY, refuse) == BYTES
    assert len(caplog.records) == 1


def assert_it_goes_on(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without a cache, with one warning."""
    assert cache.get(KEY, make) == BYTES
    assert cache.get(KEY, lambda: b"made again") == b"made again"
    [warning] = caplog.records
    assert (warning.name, warning.levelno) == ("lionbits_cupy", logging.WARNING)
    assert where in warning.getMessage()
    assert cache.CACHE in warning.getMessage()


def test_a_folder_that_cannot_be_made(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.parent.write_text("a file")
    assert_it_goes_on(str(folder), caplog)


@pytest.mark.parametrize("failing", ["replace", "fsync"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written(
    folder: Path, failing: str, number: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, failing, fail)
    assert_it_goes_on(str(folder), caplog)
    assert not list(folder.iterdir())


def test_a_file_that_cannot_be_replaced_but_is_right(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows, while another process reads what it has just written."""

    def another_was_quicker(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())
        raise PermissionError

    monkeypatch.setattr(os, "replace", another_was_quicker)
    assert cache.get(KEY, make) == BYTES
    assert not caplog.records
    assert [path.name for path in folder.iterdir()] == [KEY]


def test_an_account_without_a_home(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(cache.CACHE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    assert_it_goes_on("cannot be kept, so", caplog)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_writer_that_is_killed(folder: Path, moment: str, caplog: pytest.LogCaptureFixture) -> None:
    """Leaves no file that is wrong, and a temporary one that goes in time."""
    code = f"import os; os.{moment} = lambda *_: os._exit(9); import cache; cache.get({KEY!r}, lambda: b'half')"
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(cache.__file__).parent, check=False)
    assert killed.returncode == 9
    [temporary] = folder.iterdir()
    assert cache.get(KEY, make) == BYTES
    assert temporary.exists()  # for all that we know, its writer is about to finish

    os.utime(temporary, (time.time() - 2 * cache.STALE,) * 2)
    cache.get("another", make)
    assert {path.name for path in folder.iterdir()} == {KEY, "another"}
    assert cache.get(KEY, refuse) == BYTES
    assert not caplog.records


@pytest.mark.skipif(sys.platform == "win32", reason="nobody removes there what somebody reads")
def test_many_processes_at_once(folder: Path) -> None:
    """Each gets the right bytes at every time, though files are removed and damaged under their hands."""
    code = """if True:
        import os, sys, cache
        for i in range(150):
            key = str(i % 3)
            assert cache.get(key, lambda: key.encode() * 50000) == key.encode() * 50000
            if i % 7 == int(sys.argv[1]):
                (cache.folder() / key).unlink(missing_ok=True)
            if i % 11 == int(sys.argv[1]):
                (cache.folder() / key).write_bytes(b"damaged")
    """
    where = Path(cache.__file__).parent
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], cwd=where, stderr=subprocess.PIPE, text=True)
        for i in range(4)
    ]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, errors
    assert "cannot be kept" not in "".join(errors)
    assert not list(folder.glob("*.tmp"))
