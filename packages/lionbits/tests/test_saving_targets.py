"""Saving to anything that a path may be: devices, pipes, links, files with modes and owners, long names, full disks."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lionbits
from lionbits.checkpoint import saving

posix = pytest.mark.skipif(sys.platform == "win32", reason="devices, pipes, modes and owners of POSIX")
BIG = {"weights": torch.zeros(1 << 16)}  # 256 KiB


@contextlib.contextmanager
def full_disk(room: int = 1 << 15) -> Iterator[None]:
    """No file may grow beyond ``room`` bytes. Python ignores the signal of that, so that writes fail."""
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("save", [lionbits.save, lionbits.save_safetensors])
def test_a_full_disk_is_an_error_of_the_system(save: Callable[[Any, Path], None], tmp_path: Path) -> None:
    """OSError, as documented, where torch's writer of zip files raises RuntimeError; the old file stays."""
    path = tmp_path / "checkpoint"
    path.write_bytes(b"old")
    with full_disk(), pytest.raises(OSError, match=r"(?i)file too large"):
        save(BIG, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@posix
@pytest.mark.parametrize("linked", [False, True], ids=["itself", "through a link"])
@pytest.mark.parametrize("save", [lionbits.save, lionbits.save_safetensors])
def test_a_pipe_is_written_to_and_stays(save: Callable[[Any, Path], None], linked: bool, tmp_path: Path) -> None:
    pipe, path, usual = tmp_path / "pipe", tmp_path / "link", tmp_path / "usual"
    os.mkfifo(pipe)
    path.symlink_to(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
    reader.start()
    save(BIG, path if linked else pipe)
    reader.join(20)
    save(BIG, usual)
    assert received == [usual.read_bytes()]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert path.is_symlink()
    assert {found.name for found in tmp_path.iterdir()} == {"pipe", "link", "usual"}


@posix
def test_a_pipe_whose_reader_leaves_is_an_error_of_the_system(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = threading.Thread(target=lambda: (tmp_path / "pipe").open("rb").close(), daemon=True)
    reader.start()
    with pytest.raises(BrokenPipeError):
        lionbits.save({"weights": torch.zeros(1 << 18)}, tmp_path / "pipe")
    reader.join(20)


@posix
@pytest.mark.parametrize("linked", [False, True], ids=["itself", "through a link"])
def test_a_character_device_is_written_to_and_stays(linked: bool, tmp_path: Path) -> None:
    """A null device of our own: root could lose the system's."""
    device, path = tmp_path / "null", tmp_path / "link"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.open("wb").close()
    except OSError as error:
        pytest.skip(f"devices cannot be made and opened here: {error}")
    path.symlink_to(device)
    lionbits.save(BIG, path if linked else device)
    assert stat.S_ISCHR(device.stat().st_mode)
    assert path.is_symlink()
    assert {found.name for found in tmp_path.iterdir()} == {"null", "link"}


@posix
@pytest.mark.parametrize("kind", ["socket", "folder", "block device", "a link to itself"])
def test_what_can_hold_no_checkpoint_is_refused_and_stays(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "target"
    with socket.socket(socket.AF_UNIX) as listening:
        if kind == "socket":
            listening.bind(os.path.relpath(path))  # addresses are short
        elif kind == "folder":
            path.mkdir()
        elif kind == "a link to itself":
            path.symlink_to(path)
        else:
            try:
                os.mknod(path, 0o666 | stat.S_IFBLK, os.makedev(7, 250))
            except OSError as error:
                pytest.skip(f"devices cannot be made here: {error}")
        before = path.lstat()
        with pytest.raises(OSError, match="target"):
            lionbits.save(BIG, path)
        assert path.lstat() == before
        assert list(tmp_path.iterdir()) == [path]


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_the_mode_of_a_replaced_file_is_kept(mode: int, tmp_path: Path) -> None:
    """From the first byte on: what only its owner may read is readable by nobody else while it is written."""
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"old")
    path.chmod(mode)
    with saving.whole(path) as stream:
        (temporary,) = tmp_path.glob("*.tmp")
        assert stat.S_IMODE(temporary.stat().st_mode) == mode
        stream.write(b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"new"


@posix
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o027])
def test_a_new_file_has_the_mode_that_the_process_gives(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        lionbits.save(BIG, tmp_path / "checkpoint.pt")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "checkpoint.pt").stat().st_mode) == 0o666 & ~mask


@posix
def test_the_owner_of_a_replaced_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"old")
    try:
        os.chown(path, 12345, 23456)
    except OSError as error:
        pytest.skip(f"this user cannot give files away: {error}")
    path.chmod(0o640)
    lionbits.save(BIG, path)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 23456, 0o640)


@posix
def test_where_the_owner_cannot_be_kept_the_file_is_saved_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a colleague's file in a folder that both may write: the group is kept if only that may be."""
    asked: list[tuple[int, int]] = []

    def fchown(handle: int, user: int, group: int) -> None:
        asked.append((user, group))
        if user != -1:
            raise PermissionError(1, "Operation not permitted")

    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"old")
    path.chmod(0o664)
    found = path.stat()
    others = os.stat_result((*found[:4], found.st_uid + 1, found.st_gid + 1, *found[6:]))
    monkeypatch.setattr(saving, "_target", lambda path: others)
    monkeypatch.setattr(os, "fchown", fchown)
    lionbits.save({"step": 1}, path)
    assert asked == [(found.st_uid + 1, found.st_gid + 1), (-1, found.st_gid + 1)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o664
    assert torch.load(path, weights_only=True) == {"step": 1}


@pytest.mark.parametrize("name", ["n" * 255, "n" * 235, "n" * 234, "ü" * 127], ids=["255", "235", "234", "bytes"])
def test_names_as_long_as_the_file_system_allows(name: str, tmp_path: Path) -> None:
    """The temporary name is shorter then; leftovers of such names are found again, and nobody else's."""
    path, other = tmp_path / name, tmp_path / (name[:-1] + "o")
    left = []
    for one in (path, other):
        with saving.whole(one) as stream:
            stream.write(b"whole")
            (temporary,) = set(tmp_path.glob("*.tmp")) - set(left)
        left.append(tmp_path / f"{temporary.name[:-20]}{'0' * 16}.tmp")
        left[-1].write_bytes(b"half")
    for one, others in ((path, {left[1], path, other}), (other, {path, other})):
        saving.remove_leftovers(one)
        assert set(tmp_path.iterdir()) == others
    assert path.read_bytes() == other.read_bytes() == b"whole"


@posix
def test_links_to_files_stay_links(tmp_path: Path) -> None:
    """Through several, into another folder, to a file that is there and to one that is not."""
    (tmp_path / "there").mkdir()
    for target in (tmp_path / "there" / "old", tmp_path / "there" / "new"):
        first, second = tmp_path / f"first-{target.name}", tmp_path / f"second-{target.name}"
        first.symlink_to(os.path.relpath(target, tmp_path))
        second.symlink_to(first)
        if target.name == "old":
            target.write_bytes(b"old")
        lionbits.save({"step": 1}, second)
        assert first.is_symlink()
        assert second.is_symlink()
        assert torch.load(target, weights_only=True) == {"step": 1}


@posix
def test_only_files_are_leftovers(tmp_path: Path) -> None:
    """A pipe, a folder or a link of such a name is somebody's, and is not waited for."""
    names = [f"checkpoint.pt.{number:016x}.tmp" for number in range(3)]
    os.mkfifo(tmp_path / names[0])
    (tmp_path / names[1]).mkdir()
    (tmp_path / names[2]).symlink_to(tmp_path / "elsewhere")
    lionbits.save({}, tmp_path / "checkpoint.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "checkpoint.pt"])


@posix
def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor would open() write it. Root may write any, so the answer of the system is made up."""
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda *given, **more: False)
    with pytest.raises(PermissionError, match=r"checkpoint\.pt"):
        lionbits.save({}, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
