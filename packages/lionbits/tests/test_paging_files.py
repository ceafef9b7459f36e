"""Files of page_dir: a full disk is an error before anything is changed, and forked processes do not write to them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lionbits import PagedLion8bit

from .family import assert_same, gradient, snapshot, train, weights

ON_A_SMALL_DISK = """if True:
    import sys, torch, lionbits
    params = [torch.nn.Parameter(torch.ones(64, 64)), torch.nn.Parameter(torch.ones(1 << 20))]
    optimizer = lionbits.PagedLion(params, page_dir=sys.argv[1], page_size=1 << 16, backend="reference")
    params[0].grad = torch.ones(64, 64)
    optimizer.step()
    saved = optimizer.state[params[0]]["exp_avg"].clone()
    for param in params:
        param.grad = torch.ones_like(param)
    try:
        optimizer.step()
    except OSError as error:
        assert torch.equal(optimizer.state[params[0]]["exp_avg"], saved)
        assert not optimizer.state.get(params[1]) and optimizer.state[params[0]]["step"] == 1
        assert torch.equal(params[1], torch.ones(1 << 20))
        params[1].grad = None
        optimizer.step()
        print(error.errno, error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a small disk is mounted as Linux does it")
def test_a_full_disk_is_an_error_before_anything_is_changed(tmp_path: Path) -> None:
    """Rather than a signal that ends the process, at the first byte that the disk has no room for."""
    within = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=1m small {tmp_path}"
    if shutil.which("unshare") is None or subprocess.run([*within, mount], check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    command = [*within, f'{mount} && "$0" -c "$1" {tmp_path}', sys.executable, ON_A_SMALL_DISK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.startswith(f"{errno.ENOSPC} "), done.stdout
    assert str(tmp_path) in done.stdout
    assert "4,194,304 bytes" in done.stdout


ACTS = {"step": lambda o, s: o.step(), "init": lambda o, s: o.init_state(), "load": lambda o, s: o.load_state_dict(s)}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_where_no_file_can_be_made_nothing_has_changed(
    act: Callable[[Any, Any], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing lies in the folder; with room again it goes on."""
    params, twins = weights(), weights()
    optimizer, twin = (PagedLion8bit(some, page_dir=str(tmp_path)) for some in (params, twins))
    for some, one in ((params, optimizer), (twins, twin)):
        for position, param in enumerate(some[1:], 1):
            param.grad = gradient(param, position, 1)
        one.step()
        some[0].grad = gradient(some[0], 0, 1)
    saved = twin.state_dict()
    before = snapshot(optimizer)

    def full(handle: int, offset: int, count: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(OSError, match=r"page_dir.*bytes") as caught:
            act(optimizer, saved)
        assert caught.value.errno == errno.ENOSPC
    assert_same(snapshot(optimizer), before)
    assert list(tmp_path.iterdir()) == []
    for some, one in ((params, optimizer), (twins, twin)):
        train(one, some, [2, 3])
    assert_same(optimizer.state_dict(), twin.state_dict())


def test_bytes_of_a_file_are_there_where_the_system_cannot_reserve_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS and Windows: they are written."""
    from lionbits.paging import host_memory

    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    handle = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    host_memory.reserve(handle, (1 << 21) + 5)
    found = os.fstat(handle)
    os.close(handle)
    assert found.st_size == (1 << 21) + 5
    assert found.st_blocks * 512 >= found.st_size
    assert (tmp_path / "file").read_bytes() == bytes((1 << 21) + 5)


FORKS = """if True:
    import copy, json, os, pickle, sys, torch, lionbits
    folder, *acts = sys.argv[1:]

    def forked_act(what):
        params = [torch.nn.Parameter(torch.ones(64, 64)), torch.nn.Parameter(torch.ones(70, 61))]
        optimizer = lionbits.PagedLion8bit(params, page_dir=folder or None, backend="reference")

        def step():
            for param in params:
                param.grad = torch.full_like(param, 0.3)
            optimizer.step()

        def backward():
            sum(param.square().sum() for param in params).backward()
            optimizer.step()

        def load():
            optimizer.load_state_dict(saved)
            step()

        if what == "backward":
            lionbits.fuse_into_backward(torch.nn.ParameterList(params), optimizer)
        use = backward if what == "backward" else step
        for _ in range({"first step": 0, "second step": 2}.get(what, 1)):
            use()
        saved = copy.deepcopy(optimizer.state_dict())
        held = {key: {n: v.clone() for n, v in s.items() if torch.is_tensor(v)} for key, s in optimizer.state.items()}
        acts = {
            "load": load, "state_dict": optimizer.state_dict, "momentum": lambda: optimizer.momentum(params[0]),
            "init_state": optimizer.init_state, "pickle": lambda: pickle.dumps(optimizer),
            "copy": lambda: copy.deepcopy(optimizer),
        }
        listen, pipe = os.pipe()
        child = os.fork()
        if not child:
            try:
                acts.get(what, use)()
                os.write(pipe, b"done")
            except RuntimeError as error:
                os.write(pipe, str(error).encode())
            finally:
                os._exit(0)
        os.close(pipe)
        with os.fdopen(listen) as stream:
            said = stream.read()
        os.waitpid(child, 0)
        for key, state in held.items():
            for name, value in state.items():
                assert torch.equal(value, optimizer.state[key][name]), f"{what} in the child changed {name} here"
        use()
        return said

    print(json.dumps({what: forked_act(what) for what in acts}))
"""

forked = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
STEPS, LOOKS = ["step", "second step", "backward", "init_state"], ["state_dict", "momentum", "pickle", "copy"]


def in_forked_children(folder: str, *acts: str) -> dict[str, str]:
    """What a child says of each act; that the parent's state is as it was, and that it goes on, is asserted there."""
    command = [sys.executable, "-c", FORKS, folder, *acts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    messages: dict[str, str] = json.loads(done.stdout)
    return messages


@forked
def test_a_forked_child_does_not_use_the_files_of_its_parent(tmp_path: Path) -> None:
    """It would change the parent's momentum, and see every change of it."""
    for what, message in in_forked_children(str(tmp_path), *STEPS, *LOOKS).items():
        for words in ("page_dir", "forked", "load_state_dict"):
            assert words in message, what


@forked
def test_a_forked_child_makes_files_of_its_own(tmp_path: Path) -> None:
    """Where there is no state yet, and where it loads a state dict."""
    assert in_forked_children(str(tmp_path), "first step", "load") == {"first step": "done", "load": "done"}


@forked
def test_memory_is_copied_by_a_fork() -> None:
    """Without page_dir the child has its own."""
    messages = in_forked_children("", "first step", "load", *STEPS, *LOOKS)
    assert set(messages.values()) == {"done"}
