"""Files are whole: whatever a kill, a full disk or a second writer does, the old checkpoint is there or the new one."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import lionbits
from lionbits.checkpoint import saving

KILLED = Path(__file__).with_name("killed_while_saving.py")
LEFTOVER = "checkpoint.pt.0123456789abcdef.tmp"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked, and killed by a signal")
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """The checkpoint that was reported as saved is there, or its successor, and all of it.

    The same kills ruin a file that is written in place, so they do come while a file is being written.
    """
    command = [sys.executable, str(KILLED), str(tmp_path), "whole=50", "whole-safetensors=20", "in-place=10"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    results: dict[str, list[dict[str, int]]] = json.loads(done.stdout)
    assert all(child["signal"] == 9 for children in results.values() for child in children)
    assert any(child["found"] < 0 for child in results.pop("in-place"))
    for how, children in results.items():
        assert all(child["found"] - child["saved"] in (0, 1) for child in children)
        beside = [child["beside"] for child in children]
        assert sum(beside) >= len(children) // 5, "too few kills came while a file was being written"
        assert max(beside) == 1, "the next save removes what the last kill left"
        (place,) = {path for path in (tmp_path / how).iterdir() if path.suffix != ".tmp"}
        saving.remove_leftovers(place)
        assert list((tmp_path / how).iterdir()) == [place]


class Unwilling:
    """An object that cannot be pickled."""

    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


def _interrupted(path: Path) -> None:
    with saving.whole(path) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    lionbits.save({"step": 1}, path)
    with pytest.raises(RuntimeError, match="not me"):
        lionbits.save({"weights": torch.zeros(1000), "more": Unwilling()}, path)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lionbits.save({}, tmp_path / "nowhere" / "checkpoint.pt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        lionbits.save({}, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_bytes_are_on_disk_before_the_name_is_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync of the file, then the move, then fsync of the folder: no power cut finds an empty file under the name."""
    events: list[str] = []
    sync, replace = os.fsync, Path.replace

    def noting_sync(handle: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"file of {os.fstat(handle).st_size}"
        events.append(f"sync {kind}")
        sync(handle)

    def noting_replace(self: Path, target: Any) -> Path:
        events.append("move")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    with saving.whole(tmp_path / "file") as stream:
        stream.write(b"12345")
    assert events == ["sync file of 5", "move"] + ["sync folder"] * (sys.platform != "win32")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Rather than the file that would have been written beside the checkpoint."""
    with pytest.raises(FileNotFoundError, match=r"there is no such folder; make it before saving.*runs'"):
        lionbits.save({}, tmp_path / "runs" / "checkpoint.pt")


def test_only_leftovers_of_this_very_file_are_removed(tmp_path: Path) -> None:
    """Names that a person may have given, and other files' leftovers, stay."""
    others = ["checkpoint.pt.tmp", "checkpoint.pt.old.tmp", "other.pt.0123456789abcdef.tmp", f"x{LEFTOVER}"]
    for name in [*others, LEFTOVER]:
        (tmp_path / name).write_bytes(b"half")
    lionbits.save({}, tmp_path / "checkpoint.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "checkpoint.pt"])


def test_a_file_that_is_being_written_is_nobodys_leftover(tmp_path: Path) -> None:
    """Two writers of one file: neither disturbs the other, and the last one stays."""
    path = tmp_path / "file"
    with saving.whole(path) as first:
        first.write(b"first")
        saving.remove_leftovers(path)
        with saving.whole(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_many_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    """As when every rank saves to the same name: one of them wins, whole."""
    path = tmp_path / "file"

    def write(number: int) -> None:
        for _ in range(20):
            with saving.whole(path) as stream:
                for _ in range(50):
                    stream.write(bytes([number]) * 100)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = path.read_bytes()
    assert len(content) == 5000
    assert len(set(content)) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="links and modes of POSIX")
def test_links_are_followed_and_modes_are_the_users_own(tmp_path: Path) -> None:
    """As open() would: temporary files of other makers are readable by nobody else."""
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    lionbits.save({"step": 1}, link)
    assert link.is_symlink()
    (tmp_path / "usual").write_bytes(b"")
    assert target.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert torch.load(link, weights_only=True) == {"step": 1}
