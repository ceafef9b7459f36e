"""Copy streams that delay and reorder copies as far as events permit: at once, or only when somebody waits.

Code that relies on more than events promise (that a page has arrived, or has left) reads data that is not there yet
or overwrites data that is still to be read. Copies are between tensors of the CPU, so no device is needed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch


class AdversarialStreams:
    """Two queues of copies; a random choice decides which of the permitted ones are done.

    Args:
        seed: of the choice.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._queues: tuple[list[_Copy], list[_Copy]] = ([], [])

    def prefetch(self, copy: Callable[[], None], after: Sequence[_Copy | None]) -> _Copy:
        """Queue the copy."""
        return self._queue(0, copy, after)

    def write_back(self, copy: Callable[[], None], after: Sequence[_Copy | None]) -> _Copy:
        """Queue the copy."""
        return self._queue(1, copy, after)

    def computed(self) -> None:
        """Return no event: the CPU is not asynchronous."""

    def compute_after(self, event: _Copy | None) -> None:
        """Do the copies up to the event, and perhaps more."""
        if event is not None:
            self._finish(event)
        self._perhaps()

    def wait(self, event: _Copy | None) -> None:
        """Do the copies up to the event, and perhaps more."""
        self.compute_after(event)

    def settle(self) -> None:
        """Do all copies."""
        for queue in self._queues:
            while queue:
                self._finish(queue[-1])

    def _queue(self, stream: int, copy: Callable[[], None], after: Sequence[_Copy | None]) -> _Copy:
        queued = _Copy(copy, stream, [event for event in after if event is not None])
        self._queues[stream].append(queued)
        self._perhaps()
        return queued

    def _perhaps(self) -> None:
        for queue in self._queues:
            while queue and self._random.random() < 0.4 and all(event.done for event in queue[0].after):
                self._do(queue[0])

    def _finish(self, wanted: _Copy) -> None:
        """Do the copies before ``wanted`` in its queue, those that these wait for, and ``wanted``."""
        queue = self._queues[wanted.stream]
        while not wanted.done:
            for event in queue[0].after:
                if not event.done:
                    self._finish(event)
            self._do(queue[0])

    def _do(self, copy: _Copy) -> None:
        self._queues[copy.stream].remove(copy)
        copy.done = True
        with torch.no_grad():
            copy.run()


class _Copy:
    def __init__(self, run: Callable[[], None], stream: int, after: list[_Copy]) -> None:
        self.run, self.stream, self.after, self.done = run, stream, after, False
