"""Clocks: one interface to time, memory and launches. The host's is here, that of CUDA devices in :mod:`.cuda`.

What a device cannot tell is None there, so that no measurement asks where it runs.
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
    """What one step gives the device to do."""

    kernels: int
    transfers: int


class Deadline:
    """When to stop. It is asked between measurements; what has begun is finished."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, never negative."""
        return max(self._end - time.monotonic(), 0.0)

    @property
    def expired(self) -> bool:
        """Whether time is up."""
        return self.left == 0.0

    def share(self, fraction: float) -> Deadline:
        """An earlier one, after ``fraction`` of what is left."""
        return Deadline(self.left * fraction)


class TooSlow(BaseException):
    """Time for one candidate is up. It is no Exception: nothing that it interrupts may take it for one of its own."""


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
    """What measuring needs of a device."""

    @property
    def device(self) -> torch.device:
        """Where it measures."""

    def wait(self) -> None:
        """Until the device is idle."""

    def time(self, work: Work, host_seconds: float = 0.0) -> float:
        """Seconds that the device takes, with cold caches, where the host is ``host_seconds`` ahead."""

    def free_bytes(self) -> int:
        """Memory that tensors may still take."""

    def allocated(self) -> int | None:
        """Bytes in tensors."""

    def peak(self, work: Work) -> int | None:
        """The most bytes in tensors while ``work`` runs."""

    def growth(self, work: Work) -> int | None:
        """By how much memory grows at most while ``work`` runs."""

    def release(self) -> None:
        """Give back memory that no tensor uses."""

    def launches(self, work: Work) -> Launches | None:
        """Kernels and transfers of ``work``."""

    def waits(self, work: Work) -> int | None:
        """How often ``work`` makes the host wait for the device."""

    def capture(self, work: Work, warm: int) -> Work:
        """Run ``work`` ``warm`` times, then record it: a call of what comes back runs it once more."""


class HostClock:
    """The CPU: a step has ended when its call has. It knows nothing of launches, and caches stay warm.

    ``budget`` is what tensors may take: by default little enough that a trial never disturbs the machine.
    """

    device = torch.device("cpu")

    def __init__(self, budget: int = 1 << 28) -> None:
        self._budget = budget

    def wait(self) -> None:
        """Nothing runs on its own here."""

    def time(self, work: Work, host_seconds: float = 0.0) -> float:
        """The wall clock."""
        del host_seconds
        return host_time(self, work)

    def free_bytes(self) -> int:
        """The budget: what others use of the machine's memory is theirs."""
        return self._budget

    def allocated(self) -> int | None:
        """torch does not count memory of the CPU."""
        return None

    def peak(self, work: Work) -> int | None:
        """Run ``work`` all the same."""
        work()
        return None

    def growth(self, work: Work) -> int | None:
        """Of the resident set, as the kernel tells it."""
        return memory.growth(work)

    def release(self) -> None:
        """Have the allocator give back what it keeps."""
        memory.trim()

    def launches(self, work: Work) -> Launches | None:
        """Run ``work`` all the same."""
        work()
        return None

    def waits(self, work: Work) -> int | None:
        """Run ``work`` all the same."""
        work()
        return None

    def capture(self, work: Work, warm: int) -> Work:
        """Nothing can be recorded, so ``work`` itself is the recording."""
        for _ in range(warm):
            work()
        return work


def host_time(clock: Clock, work: Work) -> float:
    """Wall time of the call alone, begun while the device is idle."""
    clock.wait()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def wall_time(clock: Clock, work: Work) -> float:
    """From an idle device to an idle device.

    Copies on streams of their own need not wait for the current one, whose events would not see when they began.
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
        """The median of a few copies."""
        return self._bytes / median(self._clock.time(lambda: self._target.copy_(self._source)) for _ in range(5))
