"""The clock of CUDA devices."""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from .timing import Launches, Work


class CudaClock:
    """A CUDA device, timed by events on its stream.

    Before each timing the device reads a buffer larger than its L2 cache until the host has queued the whole step, as
    a backward pass would keep it busy. So caches are cold and hold nothing to be written back, and the time of a host
    that is not ahead does not count as device time.
    """

    #: Readings in front of a step at most: a queue holds about a thousand launches before the host has to wait, and a
    #: reading may be several.
    MOST_READINGS = 200

    def __init__(self, device: torch.device) -> None:
        self.device = device
        size = max(4 * torch.cuda.get_device_properties(device).L2_cache_size, 1 << 29)
        self._buffer = torch.rand(size // 4, device=device)
        self._largest = torch.empty((), device=device)
        self._start, self._end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._reading = 0.0
        self._reading = median(self.time(self._read) for _ in range(11))

    def wait(self) -> None:
        """Wait until the device is idle."""
        torch.cuda.synchronize(self.device)

    def time(self, work: Work, host_seconds: float = 0.0) -> float:
        """Return seconds between two events around ``work``."""
        ahead = math.ceil(1.5 * host_seconds / self._reading) if self._reading else 0
        for _ in range(min(1 + ahead, self.MOST_READINGS)):
            self._read()
        self._start.record()
        work()
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1e3

    def _read(self) -> None:
        torch.amax(self._buffer, 0, out=self._largest)

    def free_bytes(self) -> int:
        """Return the driver's free memory, less a margin for temporaries and fragments."""
        self.release()
        return int(torch.cuda.mem_get_info(self.device)[0] * 0.96) - (1 << 30)

    def allocated(self) -> int | None:
        """Bytes in tensors."""
        return torch.cuda.memory_allocated(self.device)

    def peak(self, work: Work) -> int | None:
        """Return the most bytes in tensors while ``work`` runs."""
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device)

    def growth(self, work: Work) -> int | None:
        """Return how many bytes of tensors are added at most while ``work`` runs."""
        before = torch.cuda.memory_allocated(self.device)
        peak = self.peak(work)
        return None if peak is None else peak - before

    def release(self) -> None:
        """Empty the caching allocator, whose blocks may have the wrong sizes for what comes next."""
        torch.cuda.empty_cache()

    def launches(self, work: Work) -> Launches | None:
        """Count kernels and transfers by the profiler. It slows later work, so it comes last.

        Raises:
            RuntimeError: it recorded nothing, as without the right to profile.
        """
        self.wait()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            work()
            self.wait()
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder, "trace.json")
            profile.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        counted = launches_in(events)
        if not counted.kernels:
            raise RuntimeError("the profiler saw no kernel")
        return counted

    def waits(self, work: Work) -> int | None:
        """Count torch's warnings about operations that synchronise."""
        self.wait()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)

    def capture(self, work: Work, warm: int) -> Work:
        """Warm up on a side stream, as torch asks for, and record a graph."""
        beside, here = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            for _ in range(warm):
                work()
        here.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay


def launches_in(events: Sequence[Mapping[str, Any]]) -> Launches:
    """Count the events of a Chrome trace that a device ran."""
    found = [event.get("cat") for event in events]
    return Launches(found.count("kernel"), found.count("gpu_memcpy") + found.count("gpu_memset"))
