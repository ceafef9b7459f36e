"""Copy streams of a device, which run in parallel with its computation. Events order the two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

#: Something that will have happened. None: it has happened.
Event = Any


class CopyStreams(Protocol):
    """Two queues of copies, which run in parallel with the current stream and with each other."""

    def prefetch(self, copy: Callable[[], None], after: Sequence[Event]) -> Event:
        """Queue a copy to the device, behind earlier ones and after these events; return its event."""

    def write_back(self, copy: Callable[[], None], after: Sequence[Event]) -> Event:
        """Queue a copy to the host, behind earlier ones and after these events; return its event."""

    def computed(self) -> Event:
        """Return an event for all work queued on the current stream so far."""

    def compute_after(self, event: Event) -> None:
        """Make later work on the current stream wait for the event; the host does not wait."""

    def wait(self, event: Event) -> None:
        """Make the host wait for the event."""

    def settle(self) -> None:
        """Make the host wait until all copies are done."""


class CudaStreams:
    """Streams and events of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._in, self._out = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def prefetch(self, copy: Callable[[], None], after: Sequence[Event]) -> Event:
        """Queue the copy on the stream to the device."""
        return self._queue(self._in, copy, after)

    def write_back(self, copy: Callable[[], None], after: Sequence[Event]) -> Event:
        """Queue the copy on the stream to the host."""
        return self._queue(self._out, copy, after)

    def computed(self) -> Event:
        """Record an event on the current stream."""
        return torch.cuda.current_stream(self._device).record_event()

    def compute_after(self, event: Event) -> None:
        """Make the current stream wait for the event."""
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def wait(self, event: Event) -> None:
        """Synchronize the host with the event."""
        if event is not None:
            event.synchronize()

    def settle(self) -> None:
        """Synchronize the host with both copy streams."""
        self._in.synchronize()
        self._out.synchronize()

    def _queue(self, stream: torch.cuda.Stream, copy: Callable[[], None], after: Sequence[Event]) -> Event:
        for event in after:
            if event is not None:
                stream.wait_event(event)
        with torch.cuda.stream(stream):
            copy()
        return stream.record_event()


class Synchronous:
    """Copy streams of a device for which torch has no streams: each copy is done at once."""

    def prefetch(self, copy: Callable[[], None], after: Sequence[Event]) -> Event:
        """Copy at once."""
        copy()

    def write_back(self, copy: Callable[[], None], after: Sequence[Event]) -> Event:
        """Copy at once."""
        copy()

    def computed(self) -> Event:
        """Return no event: the work is done."""

    def compute_after(self, event: Event) -> None:
        """Do nothing: the copy is done."""

    def wait(self, event: Event) -> None:
        """Do nothing: the copy is done."""

    def settle(self) -> None:
        """Do nothing: no copy is pending."""


def copy_streams(device: torch.device) -> CopyStreams:
    """Return new copy streams of a device."""
    return CudaStreams(device) if device.type == "cuda" else Synchronous()
