"""What a device does beside its computing: bring bytes, take bytes back. Marks say what has to come before what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

#: Something that will have happened. None: it has.
Mark = Any


class Lanes(Protocol):
    """Two queues of copies, which run beside what the current stream computes and beside each other."""

    def bring(self, copy: Callable[[], None], after: Sequence[Mark]) -> Mark:
        """Queue a copy to the device, behind those before it and these marks."""

    def take_back(self, copy: Callable[[], None], after: Sequence[Mark]) -> Mark:
        """Queue a copy to the host, likewise."""

    def computed(self) -> Mark:
        """All that has been given to the current stream."""

    def compute_after(self, mark: Mark) -> None:
        """What the current stream is given from now on waits for this; the host does not."""

    def wait(self, mark: Mark) -> None:
        """The host waits for this."""

    def settle(self) -> None:
        """The host waits until nothing is on its way."""


class CudaLanes:
    """Streams and events of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._in, self._out = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def bring(self, copy: Callable[[], None], after: Sequence[Mark]) -> Mark:
        """See :meth:`Lanes.bring`."""
        return self._queue(self._in, copy, after)

    def take_back(self, copy: Callable[[], None], after: Sequence[Mark]) -> Mark:
        """See :meth:`Lanes.take_back`."""
        return self._queue(self._out, copy, after)

    def computed(self) -> Mark:
        """See :meth:`Lanes.computed`."""
        return torch.cuda.current_stream(self._device).record_event()

    def compute_after(self, mark: Mark) -> None:
        """See :meth:`Lanes.compute_after`."""
        if mark is not None:
            torch.cuda.current_stream(self._device).wait_event(mark)

    def wait(self, mark: Mark) -> None:
        """See :meth:`Lanes.wait`."""
        if mark is not None:
            mark.synchronize()

    def settle(self) -> None:
        """See :meth:`Lanes.settle`."""
        self._in.synchronize()
        self._out.synchronize()

    def _queue(self, stream: torch.cuda.Stream, copy: Callable[[], None], after: Sequence[Mark]) -> Mark:
        for mark in after:
            if mark is not None:
                stream.wait_event(mark)
        with torch.cuda.stream(stream):
            copy()
        return stream.record_event()


class OneLane:
    """A device without streams that torch knows: everything happens in turn, at once."""

    def bring(self, copy: Callable[[], None], after: Sequence[Mark]) -> Mark:
        """See :meth:`Lanes.bring`."""
        copy()

    def take_back(self, copy: Callable[[], None], after: Sequence[Mark]) -> Mark:
        """See :meth:`Lanes.take_back`."""
        copy()

    def computed(self) -> Mark:
        """See :meth:`Lanes.computed`."""

    def compute_after(self, mark: Mark) -> None:
        """See :meth:`Lanes.compute_after`."""

    def wait(self, mark: Mark) -> None:
        """See :meth:`Lanes.wait`."""

    def settle(self) -> None:
        """See :meth:`Lanes.settle`."""


def lanes(device: torch.device) -> Lanes:
    """Those of a device."""
    return CudaLanes(device) if device.type == "cuda" else OneLane()
