"""Memory of this process on the CPU, as the kernel counts it: torch does not.

Reported is how much the resident set grows while something runs: Linux keeps its highest value, and resets it
on request (``/proc/self/clear_refs``). Where that is impossible nothing is reported. Memory that an optimizer keeps
from step to step outside its state is resident before, and is not counted.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

_CLEAR, _STATUS, _MEMORY = Path("/proc/self/clear_refs"), Path("/proc/self/status"), Path("/proc/meminfo")
_GROUPS, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

#: Files of a control group: its limit, and what it uses; of version 1 and of version 2.
_V1, _V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")
RESET_PEAK = "5"


def growth(work: Callable[[], object]) -> int | None:
    """Run ``work``; return the bytes by which the resident set grew meanwhile."""
    trim()  # else blocks that the last step left behind would hold this one's temporaries
    try:
        _CLEAR.write_text(RESET_PEAK)
        before = _counter(_STATUS, "VmHWM")
    except OSError:
        before = None
    work()
    return None if before is None else max((_counter(_STATUS, "VmHWM") or 0) - before, 0)


def trim() -> None:
    """Make C's allocator return free memory; only glibc's does."""
    if os.name == "posix":
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if give_back is not None:
            give_back(0)


def available() -> int:
    """Return the free bytes of the machine, or of its container if those are fewer; a gigabyte if they are unknown."""
    try:
        machine = _counter(_MEMORY, "MemAvailable") or 1 << 30
    except OSError:
        machine = 1 << 30
    return min([machine, *_left_in_containers()])


def _left_in_containers() -> list[int]:
    """Return the bytes that each control group above this process leaves it, of both versions of cgroups.

    A limit counts for all groups below it. Inside a container the paths of ``/proc/self/cgroup`` may be those outside,
    so the top of the file system, which is then the container's own group, is looked at in any case.
    """
    try:
        lines = _GROUPS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = _CGROUPS / "memory" if controllers else _CGROUPS
        limit, used = _V1 if controllers else _V2
        below = top / path.lstrip("/")
        folders = [below, *below.parents][: len(below.parts) - len(top.parts) + 1]
        left += [free for folder in folders if (free := _left(folder / limit, folder / used)) is not None]
    return left


def _left(limit: Path, used: Path) -> int | None:
    """Return the bytes that a control group leaves; None if there is no such group here, or no limit ("max")."""
    try:
        return max(int(limit.read_text(encoding="ascii")) - int(used.read_text(encoding="ascii")), 0)
    except (OSError, ValueError):
        return None


def _counter(file: Path, name: str) -> int | None:
    for line in file.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
