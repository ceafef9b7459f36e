"""The bus between host and device: pages copied through the lanes that paging uses, each way alone and both at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lionbits.paging.streams import copy_streams

from .results import Findings
from .timing import Clock, Deadline, host_time
from .transfers import WAYS, Crossing

#: How often each is measured.
SAMPLES = 5


def measure(
    clock: Clock, page_sizes: Sequence[int], size: int, deadline: Deadline, findings: Findings
) -> list[Crossing]:
    """So many bytes each way, in pages of each size, between pinned memory and the device."""
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
    """Memory at both ends, twice: what is brought and what is taken back never share any.

    Args:
        device: at the one end.
        size: bytes that cross each way.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        self._size, self._streams = size, copy_streams(device)
        self.near_in, self.near_out = (
            torch.randint(0, 256, (size,), dtype=torch.uint8, device=device) for _ in range(2)
        )
        pinned = device.type == "cuda"
        self.far_in, self.far_out = (
            torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned).copy_(near)
            for near in (self.near_out, self.near_in)
        )

    def cross(self, page_size: int, way: str) -> None:
        """Queue all copies; what the current stream is given from now on waits for the last of them."""
        begin = self._streams.computed()
        brought = taken = begin
        for at in range(0, self._size, page_size):
            page = slice(at, at + page_size)
            after = () if at else (begin,)
            if way != "out":
                brought = self._streams.prefetch(_copy(self.near_in[page], self.far_in[page]), after)
            if way != "in":
                taken = self._streams.write_back(_copy(self.far_out[page], self.near_out[page]), after)
        self._streams.compute_after(brought)
        self._streams.compute_after(taken)


def _copy(to: Tensor, of: Tensor) -> Callable[[], None]:
    def copy() -> None:
        to.copy_(of, non_blocking=True)

    return copy
