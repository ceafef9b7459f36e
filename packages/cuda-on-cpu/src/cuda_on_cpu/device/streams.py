"""``torch.cuda.Stream`` and ``torch.cuda.Event`` of simulated devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .schedule import Moment, Queue
from .state import current


def index_of(device: Any) -> int:
    """Return the index of a device, given in any of torch's ways.

    Raises:
        ValueError: it is no CUDA device.
    """
    if device is None:
        return current().device()
    if isinstance(device, int):
        return device if device >= 0 else current().device()
    found = torch.device(device)
    if found.type != "cuda":
        raise ValueError(f"Expected a cuda device, but got: {found}")
    return current().device() if found.index is None else int(found.index)


class Stream:
    """A stream: of a device, or one that there is already."""

    def __init__(self, device: Any = None, priority: int = 0, *, queue: Queue | None = None) -> None:
        self.priority = priority
        self.queue = Queue(current().schedule, index_of(device)) if queue is None else queue

    @property
    def device(self) -> torch.device:
        """Device of the stream."""
        return torch.device("cuda", self.queue.device)

    @property
    def cuda_stream(self) -> int:
        """Number of the stream, which stands for its address."""
        return self.queue.number

    stream_id = cuda_stream

    @property
    def device_index(self) -> int:
        """Index of its device."""
        return self.queue.device

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.cuda_stream

    def record_event(self, event: Event | None = None) -> Event:
        """Record an event after all work so far."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Let later work wait for an event; one that was never recorded has happened."""
        if event.moment is not None:
            current().schedule.wait(self.queue, event.moment)

    def wait_stream(self, stream: Stream) -> None:
        """Let later work wait for all work of another stream so far."""
        self.wait_event(stream.record_event())

    def synchronize(self) -> None:
        """Make the host wait for all work so far."""
        current().synchronize(self.queue, "Stream.synchronize()")

    def query(self) -> bool:
        """True if all work is done. Some more may run before the answer."""
        current().schedule.forbid_in_capture("Stream.query()")
        current().schedule.pause()
        return not self.queue.waiting

    def __enter__(self) -> Stream:
        self._entered = stream(self)
        self._entered.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.queue is self.queue

    def __hash__(self) -> int:
        return hash(self.queue.number)

    def __repr__(self) -> str:
        return f"<Stream {self.queue.number} of the simulated {self.device}>"


class ExternalStream(Stream):
    """A stream, by its address."""

    def __init__(self, stream_ptr: int, device: Any = None) -> None:
        super().__init__(device, queue=current().queue(stream_ptr))


class Event:
    """A mark in a stream."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, **more: Any) -> None:
        del blocking, more
        self.moment: Moment | None = None
        self._timed, self._at = enable_timing, 0

    def record(self, stream: Stream | None = None) -> None:
        """Record it after all work of a stream so far; by default of the current one."""
        world = current()
        self.moment = world.schedule.record(current_stream().queue if stream is None else stream.queue)
        self._at = world.schedule.counts["launches"]

    def wait(self, stream: Stream | None = None) -> None:
        """Let later work of a stream wait for it."""
        (current_stream() if stream is None else stream).wait_event(self)

    def synchronize(self) -> None:
        """Make the host wait for it."""
        current().schedule.forbid_in_capture("Event.synchronize()")
        moment = self.moment
        if moment is not None:
            current().schedule.until(lambda: moment.done, "Event.synchronize()")

    def query(self) -> bool:
        """True if it has happened. Some more work may run before the answer."""
        current().schedule.forbid_in_capture("Event.query()")
        current().schedule.pause()
        return self.moment is None or self.moment.done

    def elapsed_time(self, end: Event) -> float:
        """Return how many launches were submitted between the two: there is no time here."""
        if not (self._timed and end._timed):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        return float(end._at - self._at)


def current_stream(device: Any = None) -> Stream:
    """Return the current stream of a device."""
    return Stream(queue=current().current_queue(index_of(device)))


def default_stream(device: Any = None) -> Stream:
    """Return the default stream of a device. It orders no other stream."""
    return Stream(queue=current().default[index_of(device)])


@contextmanager
def stream(chosen: Stream | None) -> Iterator[None]:
    """Make a stream, and its device, the current ones."""
    if chosen is None:
        yield
        return
    world = current()
    device, before = world.device(), world.current_queue(chosen.queue.device)
    world.set_device(chosen.queue.device)
    world.set_queue(chosen.queue)
    try:
        yield
    finally:
        world.set_queue(before)
        world.set_device(device)


def set_stream(chosen: Stream) -> None:
    """Make a stream, and its device, the current ones for good."""
    current().set_device(chosen.queue.device)
    current().set_queue(chosen.queue)


def synchronize(device: Any = None) -> None:
    """Make the host wait for all work of a device."""
    world, index = current(), index_of(device)
    world.schedule.forbid_in_capture("torch.cuda.synchronize()")
    moments = [world.schedule.record(queue) for queue in world.schedule.queues if queue.device == index]
    world.schedule.until(lambda: all(moment.done for moment in moments), "torch.cuda.synchronize()")


class DeviceGuard:
    """``torch.cuda.device``: makes a device the current one."""

    def __init__(self, device: Any) -> None:
        self._index = -1 if device is None or device == -1 else index_of(device)

    def __enter__(self) -> None:
        self._before = current().device()
        if self._index >= 0:
            current().set_device(self._index)

    def __exit__(self, *error: Any) -> None:
        current().set_device(self._before)
