"""What paging leaves in a process and in a folder, and what it takes of memory."""

from __future__ import annotations

import gc
import resource
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

import lionbits
from lionbits import Lion

from .family import train, weights
from .movers import moving


def test_fifty_optimizers_leave_nothing(tmp_path: Path) -> None:
    """Pages die with their optimizer, in memory and in files: the process ends no larger than it began."""
    pages: list[weakref.ref[torch.Tensor]] = []
    resident = []
    for i in range(50):
        params = weights(shapes=[(64, 640), (5000,), (1 << 20,)])
        optimizer: Lion = (
            lionbits.PagedLion8bit(params, page_dir=str(tmp_path)) if i % 2 else moving(params, 1 << 17, 0)
        )
        train(optimizer, params, [1])
        values = [value for state in optimizer.state.values() for value in state.values()]
        pages += [weakref.ref(value) for value in values if isinstance(value, torch.Tensor)]
        del optimizer, params, values
        gc.collect()
        resident.append(_resident_bytes())
    assert max(resident[-10:]) - max(resident[:10]) < 20 << 20  # what forty leave would be 100 MiB and more
    assert len(pages) >= 100
    assert [page for page in pages if page() is not None] == []
    assert not any(str(tmp_path) in line for line in Path("/proc/self/maps").read_text().splitlines())


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_killed_worker_leaves_no_files(tmp_path: Path) -> None:
    """Files have lost their names as soon as they are made."""
    script = (
        "import torch, lionbits, os, signal\n"
        "p = torch.nn.Parameter(torch.ones(1000, 64)); p.grad = torch.ones_like(p)\n"
        f"o = lionbits.PagedLion8bit([p], page_dir={str(tmp_path)!r}, backend='reference')\n"
        "o.step()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux only")
def test_state_may_be_larger_than_memory(tmp_path: Path) -> None:
    """With a limit on the process's memory that its state does not fit in, files serve, and give the same bits."""
    script = (
        "import resource, sys, torch, lionbits\n"
        "torch.set_num_threads(1)\n"
        "def run(steps, **settings):\n"
        "    torch.manual_seed(0)\n"
        "    p = torch.nn.Parameter(torch.randn(1 << 24)); p.grad = torch.randn(1 << 24)\n"
        "    small = torch.nn.Parameter(torch.ones(64, 64)); small.grad = torch.ones(64, 64)\n"
        "    warm = lionbits.PagedLion([small], backend='reference'); warm.step(); del warm\n"
        "    if settings.pop('limit', False):\n"
        "        data = next(int(l.split()[1]) << 10 for l in open('/proc/self/status') if l.startswith('VmData'))\n"
        "        resource.setrlimit(resource.RLIMIT_DATA, (data + (32 << 20),) * 2)\n"
        "    o = lionbits.PagedLion([p], backend='reference', **settings)\n"
        "    for _ in range(steps): o.step()\n"
        "    return p\n"
        "want = run(2)\n"
        "got = run(2, limit=True, page_dir=sys.argv[1])\n"
        "assert torch.equal(got, want)\n"
        "try:\n"
        "    torch.zeros(1 << 24)\n"
        "except RuntimeError:\n"
        "    print('as the resident run, and 64 MiB more would not fit')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert "would not fit" in done.stdout, done.stderr
