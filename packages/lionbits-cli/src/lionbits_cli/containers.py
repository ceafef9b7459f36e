"""The memory that a container leaves this process: control groups of Linux, of both versions."""

from __future__ import annotations

from pathlib import Path

_GROUPS, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

#: Files of a control group: its limit, and what it uses; of version 1 and of version 2.
_V1, _V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")


def limits() -> list[tuple[int, int]]:
    """Return limit and use, in bytes, of each control group above this process that has a limit.

    A limit counts for all groups below it. Inside a container the paths of ``/proc/self/cgroup`` may be those outside,
    so the top of the file system, which is then the container's own group, is looked at in any case.
    """
    try:
        lines = _GROUPS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = _CGROUPS / "memory" if controllers else _CGROUPS
        limit, used = _V1 if controllers else _V2
        below = top / path.lstrip("/")
        folders = [below, *below.parents][: len(below.parts) - len(top.parts) + 1]
        found += [both for folder in folders if (both := _read(folder / limit, folder / used)) is not None]
    return found


def _read(limit: Path, used: Path) -> tuple[int, int] | None:
    """Return the numbers in two files; None if there is no such group here, or no limit ("max")."""
    try:
        return int(limit.read_text(encoding="ascii")), int(used.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
