"""Clocks: one interface to time, memory and launches. The host's is here, that of CUDA devices in :mod:`.cuda`.

Quantities that a device cannot measure are None, so that no measurement depends on the device.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple, Protocol

import torch

from . import memory

Work = Callable[[], object]


class Launches(NamedTuple):
    """Launches of one step."""

    kernels: int
    transfers: int


class Deadline:
    """A point in time. It is checked between measurements; one that has begun is finished."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, never negative."""
        return max(self._end - time.monotonic(), 0.0)

    @property
    def expired(self) -> bool:
        """True if time is up."""
        return self.left == 0.0

    def share(self, fraction: float) -> Deadline:
        """Return an earlier deadline, after ``fraction`` of the time left."""
        return Deadline(self.left * fraction)


class TooSlow(BaseException):
    """The time of one candidate is up. It is no Exception, so that interrupted code does not catch it as its own."""


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raise :class:`TooSlow` when the body takes longer, as soon as Python runs again.

    Signals reach the main thread only, and not every system has them: elsewhere there is no limit.
    """
    main = threading.current_thread() is threading.main_thread()
    if seconds is None or not main or not hasattr(signal, "setitimer"):
        yield
        return

    def up(*_: object) -> None:
        raise TooSlow(f"stopped after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Clock(Protocol):
    """Measurements on a device."""

    @property
    def device(self) -> torch.device:
        """The device."""

    def wait(self) -> None:
        """Wait until the device is idle."""

    def time(self, work: Work, host_seconds: float = 0.0) -> float:
        """Return seconds on the device, with cold caches, if the host is ``host_seconds`` ahead."""

    def free_bytes(self) -> int:
        """Return the memory that tensors may still take."""

    def allocated(self) -> int | None:
        """Return bytes in tensors."""

    def peak(self, work: Work) -> int | None:
        """Return the most bytes in tensors while ``work`` runs."""

    def growth(self, work: Work) -> int | None:
        """Return how much memory grows at most while ``work`` runs."""

    def release(self) -> None:
        """Give back memory that no tensor uses."""

    def launches(self, work: Work) -> Launches | None:
        """Count kernels and transfers of ``work``."""

    def waits(self, work: Work) -> int | None:
        """Count how often ``work`` makes the host wait for the device."""

    def capture(self, work: Work, warm: int) -> Work:
        """Run ``work`` ``warm`` times, then record it; return a call that replays it once."""


class HostClock:
    """The CPU: a step has ended when its call has. There are no launches, and caches stay warm.

    ``budget`` is what tensors may take: by default little enough that a dry run does not disturb the machine.
    """

    device = torch.device("cpu")

    def __init__(self, budget: int = 1 << 28) -> None:
        self._budget = budget

    def wait(self) -> None:
        """Do nothing: the CPU is synchronous."""

    def time(self, work: Work, host_seconds: float = 0.0) -> float:
        """Return seconds of the wall clock."""
        del host_seconds
        return host_time(self, work)

    def free_bytes(self) -> int:
        """Return the budget: memory that other processes use is not counted."""
        return self._budget

    def allocated(self) -> int | None:
        """Return None: torch does not count memory of the CPU."""
        return None

    def peak(self, work: Work) -> int | None:
        """Run ``work``; return None."""
        work()
        return None

    def growth(self, work: Work) -> int | None:
        """Return growth of the resident set, as the kernel counts it."""
        return memory.growth(work)

    def release(self) -> None:
        """Make the allocator return free memory."""
        memory.trim()

    def launches(self, work: Work) -> Launches | None:
        """Run ``work``; return None."""
        work()
        return None

    def waits(self, work: Work) -> int | None:
        """Run ``work``; return None."""
        work()
        return None

    def capture(self, work: Work, warm: int) -> Work:
        """Return ``work``: nothing can be recorded."""
        for _ in range(warm):
            work()
        return work


def host_time(clock: Clock, work: Work) -> float:
    """Return the wall time of the call alone, begun while the device is idle."""
    clock.wait()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def wall_time(clock: Clock, work: Work) -> float:
    """Return the wall time from an idle device to an idle device.

    Copies on streams of their own need not wait for the current stream, whose events would miss their begin.
    """
    clock.wait()
    begin = time.perf_counter()
    work()
    clock.wait()
    return time.perf_counter() - begin


class CopyMeter:
    """The bandwidth of copying between two buffers of the device: bytes read and bytes written, per second."""

    def __init__(self, clock: Clock, size: int) -> None:
        self._clock, self._bytes = clock, 2 * size
        self._source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=clock.device)
        self._target = torch.zeros_like(self._source)
        self.bandwidth()

    def bandwidth(self) -> float:
        """Return the median of a few copies."""
        return self._bytes / median(self._clock.time(lambda: self._target.copy_(self._source)) for _ in range(5))
