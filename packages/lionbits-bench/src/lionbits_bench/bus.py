"""Bandwidth between host and device: pages copied on the copy streams of paging, each way alone and both at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lionbits.paging.streams import copy_streams

from .results import Findings
from .timing import Clock, Deadline, host_time
from .transfers import WAYS, Crossing

#: Number of measurements of each.
SAMPLES = 5


def measure(
    clock: Clock, page_sizes: Sequence[int], size: int, deadline: Deadline, findings: Findings
) -> list[Crossing]:
    """Copy ``size`` bytes each way, in pages of each size, between pinned memory and the device."""
    bus, found = Bus(clock.device, size), []
    for page_size in page_sizes:
        for way in WAYS:
            if deadline.expired:
                findings.unfinished.append(f"the bus, {way}, in pages of {page_size:,} bytes")
                continue
            cross = partial(bus.cross, page_size, way)
            cross()
            ahead = host_time(clock, cross)
            seconds = [clock.time(cross, ahead) for _ in range(SAMPLES)]
            found.append(Crossing(page_size, way, (2 if way == "both" else 1) * size, seconds))
    return found


class Bus:
    """Buffers at both ends, one for each direction, so that copies in opposite directions share no memory.

    Args:
        device: at the one end.
        size: bytes that are copied each way.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        self._size, self._streams = size, copy_streams(device)
        self.in_on_device, self.out_on_device = (
            torch.randint(0, 256, (size,), dtype=torch.uint8, device=device) for _ in range(2)
        )
        pinned = device.type == "cuda"
        self.in_on_host, self.out_on_host = (
            torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned).copy_(on_device)
            for on_device in (self.out_on_device, self.in_on_device)
        )

    def cross(self, page_size: int, way: str) -> None:
        """Queue all copies; later work on the current stream waits for the last of them."""
        begin = self._streams.computed()
        prefetched = written = begin
        for at in range(0, self._size, page_size):
            page = slice(at, at + page_size)
            after = () if at else (begin,)
            if way != "out":
                prefetched = self._streams.prefetch(_copy(self.in_on_device[page], self.in_on_host[page]), after)
            if way != "in":
                written = self._streams.write_back(_copy(self.out_on_host[page], self.out_on_device[page]), after)
        self._streams.compute_after(prefetched)
        self._streams.compute_after(written)


def _copy(to: Tensor, of: Tensor) -> Callable[[], None]:
    def copy() -> None:
        to.copy_(of, non_blocking=True)

    return copy
