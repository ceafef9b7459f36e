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

from lionbits_cli import containers

_CLEAR, _STATUS, _MEMORY = Path("/proc/self/clear_refs"), Path("/proc/self/status"), Path("/proc/meminfo")
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
    return min([machine, *(max(limit - used, 0) for limit, used in containers.limits())])


def _counter(file: Path, name: str) -> int | None:
    for line in file.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
