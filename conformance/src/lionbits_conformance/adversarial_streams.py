"""Copy streams that delay and reorder copies as far as events permit: at once, or not before somebody has to wait.

Whoever relies on more than events promise, that a page has surely arrived, or surely left, reads what is not there yet
or overwrites what is still to be read. Copies happen between tensors of the CPU, so no device is needed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch


class AdversarialStreams:
    """Two queues of copies; which of those that may happen do so is drawn.

    Args:
        seed: of the draws.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._queues: tuple[list[_Copy], list[_Copy]] = ([], [])

    def prefetch(self, copy: Callable[[], None], after: Sequence[_Copy | None]) -> _Copy:
        """Queue it."""
        return self._queue(0, copy, after)

    def write_back(self, copy: Callable[[], None], after: Sequence[_Copy | None]) -> _Copy:
        """Queue it."""
        return self._queue(1, copy, after)

    def computed(self) -> None:
        """What has been computed is done: the CPU is not asynchronous."""

    def compute_after(self, event: _Copy | None) -> None:
        """Let happen what has to, and perhaps more."""
        if event is not None:
            self._finish(event)
        self._perhaps()

    def wait(self, event: _Copy | None) -> None:
        """Likewise."""
        self.compute_after(event)

    def settle(self) -> None:
        """Let everything happen."""
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
        """First what is before it in its queue, and what these wait for."""
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
