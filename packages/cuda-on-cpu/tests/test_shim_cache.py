"""Whose libraries are loaded: those that this user built, from a folder that nobody else can write."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cuda_on_cpu import Module, build

KERNEL = 'extern "C" __global__ void k(int* y) { *y = 1; }\n'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A kernel that writes 1."""
    (tmp_path / "k.cu").write_text(KERNEL)
    return tmp_path / "k.cu"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, asked for by the variable."""
    monkeypatch.setenv(build.CACHE, str(tmp_path / "cache"))
    build._folder.cache_clear()
    yield tmp_path / "cache"
    build._folder.cache_clear()


def build_in_time(source: Path) -> Path:
    """The library of the source, within a minute: who waits for the writer of a pipe waits for good."""
    found: list[Path] = []
    builder = threading.Thread(target=lambda: found.append(Module(source).path), daemon=True)
    builder.start()
    builder.join(60)
    assert found, "the cache hangs"
    return found[0]


def written_by(module_path: Path, source: Path) -> int:
    """What the kernel writes, in a process of its own: here the first library stays loaded."""
    code = (
        "import sys, numpy, pathlib; from cuda_on_cpu import Module, build; y = numpy.zeros(1, dtype=numpy.int32); "
        "module = Module(pathlib.Path(sys.argv[1])); assert str(module.path) == sys.argv[2]; "
        "module.get_function('k')((1,), (1,), (y.ctypes.data,)); print(y[0])"
    )
    command = [sys.executable, "-c", code, str(source), str(module_path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def spoil(path: Path, how: str, tmp_path: Path) -> None:
    """Let a file of the cache be one that somebody else may have put there."""
    if how == "writable":
        path.chmod(0o666)
    elif how == "another user's":
        try:
            os.chown(path, 12345, -1)
        except OSError as error:
            pytest.skip(f"this user cannot give files away: {error}")
    elif how == "a link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.unlink()
        os.mkfifo(path)


@pytest.mark.parametrize("suffix", [".so", ".sha256"])
@pytest.mark.parametrize("how", ["writable", "another user's", "a link", "a pipe"])
def test_a_file_of_which_others_may_be_the_writers_is_built_anew(
    source: Path, folder: Path, how: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_in_time(source)
    spoilt = first.with_suffix(suffix)
    spoil(spoilt, how, tmp_path)
    builds: list[Path] = []
    original = build._compile
    monkeypatch.setattr(build, "_compile", lambda *given: (builds.append(given[2]), original(*given)))
    assert build_in_time(source) == first
    assert builds == [first]
    assert build_in_time(source) == first
    assert len(builds) == 1
    found = spoilt.lstat()
    assert stat.S_ISREG(found.st_mode)
    assert (found.st_uid, found.st_mode & 0o022) == (os.geteuid(), 0)
    assert written_by(first, source) == 1


@pytest.mark.parametrize("mask", [0o000, 0o002])
def test_what_is_built_is_the_users_own_whatever_the_umask(source: Path, folder: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        kept = build_in_time(source)
    finally:
        os.umask(before)
    assert build._is_whole(kept)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(path.stat().st_mode & 0o022 == 0 for path in folder.iterdir())


@pytest.mark.parametrize("how", ["writable", "another user's"])
def test_a_folder_that_others_may_write_is_not_used(source: Path, folder: Path, how: str, tmp_path: Path) -> None:
    """A library is loaded by its name, at which they could put another. This process builds in a folder of its own."""
    folder.mkdir()
    spoil(folder, how, tmp_path)
    words = "other users can write it" if how == "writable" else "it belongs to user 12345"
    with pytest.warns(UserWarning, match=f"(?s){folder}.*{words}.*{build.CACHE}"):
        kept = Module(source).path
    assert kept.parent != folder
    assert not list(folder.iterdir())
    y = np.zeros(1, dtype=np.int32)
    Module(source).get_function("k")((1,), (1,), (y.ctypes.data,))
    assert y[0] == 1


def test_a_shared_folder_in_which_nobody_replaces_others_files_is_used(source: Path, folder: Path) -> None:
    """As /tmp is, with its sticky bit."""
    folder.mkdir()
    folder.chmod(0o1777)
    assert build_in_time(source).parent == folder
    assert build_in_time(source).parent == folder
