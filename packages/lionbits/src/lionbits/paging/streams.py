"""Copy streams of a device, which run beside its computing. Events say what has to come before what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

#: Something that will have happened. None: it has happened.
Event = Any


class CopyStreams(Protocol):
    """Two queues of copies, which run beside what the current stream computes and beside each other."""

    def prefetch(self, copy: Callable[[], None], after: Sequence[Event]) -> Event:
        """Queue a copy to the device, behind those before it and after these events."""

    def write_back(self, copy: Callable[[], None], after: Sequence[Event]) -> Event:
        """Queue a copy to the host, likewise."""

    def computed(self) -> Event:
        """An event: all that has been given to the current stream."""

    def compute_after(self, event: Event) -> None:
        """Let what the current stream is given from now on wait for this; the host does not."""

    def wait(self, event: Event) -> None:
        """The host waits for this."""

    def settle(self) -> None:
        """The host waits until nothing is on its way."""


class CudaStreams:
    """Streams and events of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._in, self._out = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def prefetch(self, copy: Callable[[], None], after: Sequence[Event]) -> Event:
        """See :meth:`CopyStreams.prefetch`."""
        return self._queue(self._in, copy, after)

    def write_back(self, copy: Callable[[], None], after: Sequence[Event]) -> Event:
        """See :meth:`CopyStreams.write_back`."""
        return self._queue(self._out, copy, after)

    def computed(self) -> Event:
        """See :meth:`CopyStreams.computed`."""
        return torch.cuda.current_stream(self._device).record_event()

    def compute_after(self, event: Event) -> None:
        """See :meth:`CopyStreams.compute_after`."""
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def wait(self, event: Event) -> None:
        """See :meth:`CopyStreams.wait`."""
        if event is not None:
            event.synchronize()

    def settle(self) -> None:
        """See :meth:`CopyStreams.settle`."""
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
    """A device without streams that torch knows: everything happens in turn, at once."""

    def prefetch(self, copy: Callable[[], None], after: Sequence[Event]) -> Event:
        """See :meth:`CopyStreams.prefetch`."""
        copy()

    def write_back(self, copy: Callable[[], None], after: Sequence[Event]) -> Event:
        """See :meth:`CopyStreams.write_back`."""
        copy()

    def computed(self) -> Event:
        """See :meth:`CopyStreams.computed`."""

    def compute_after(self, event: Event) -> None:
        """See :meth:`CopyStreams.compute_after`."""

    def wait(self, event: Event) -> None:
        """See :meth:`CopyStreams.wait`."""

    def settle(self) -> None:
        """See :meth:`CopyStreams.settle`."""


def copy_streams(device: torch.device) -> CopyStreams:
    """The copy streams of a device."""
    return CudaStreams(device) if device.type == "cuda" else Synchronous()
