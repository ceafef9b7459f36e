"""Lanes as unkind as the rules allow: a copy happens at once, or not before somebody has to wait for it.

Whoever relies on more than marks promise, that a page has surely arrived, or surely left, reads what is not there yet
or overwrites what is still to be read. Copies happen between tensors of the CPU, so no device is needed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch


class Adversary:
    """Two queues of copies; which of those that may happen do so is drawn.

    Args:
        seed: of the draws.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._queues: tuple[list[_Copy], list[_Copy]] = ([], [])

    def bring(self, copy: Callable[[], None], after: Sequence[_Copy | None]) -> _Copy:
        """Queue it."""
        return self._queue(0, copy, after)

    def take_back(self, copy: Callable[[], None], after: Sequence[_Copy | None]) -> _Copy:
        """Queue it."""
        return self._queue(1, copy, after)

    def computed(self) -> None:
        """What has been computed is done: the CPU is not asynchronous."""

    def compute_after(self, mark: _Copy | None) -> None:
        """Let happen what has to, and perhaps more."""
        if mark is not None:
            self._finish(mark)
        self._perhaps()

    def wait(self, mark: _Copy | None) -> None:
        """Likewise."""
        self.compute_after(mark)

    def settle(self) -> None:
        """Let everything happen."""
        for queue in self._queues:
            while queue:
                self._finish(queue[-1])

    def _queue(self, lane: int, copy: Callable[[], None], after: Sequence[_Copy | None]) -> _Copy:
        queued = _Copy(copy, lane, [mark for mark in after if mark is not None])
        self._queues[lane].append(queued)
        self._perhaps()
        return queued

    def _perhaps(self) -> None:
        for queue in self._queues:
            while queue and self._random.random() < 0.4 and all(mark.done for mark in queue[0].after):
                self._do(queue[0])

    def _finish(self, wanted: _Copy) -> None:
        """First what is before it in its queue, and what these wait for."""
        queue = self._queues[wanted.lane]
        while not wanted.done:
            for mark in queue[0].after:
                if not mark.done:
                    self._finish(mark)
            self._do(queue[0])

    def _do(self, copy: _Copy) -> None:
        self._queues[copy.lane].remove(copy)
        copy.done = True
        with torch.no_grad():
            copy.run()


class _Copy:
    def __init__(self, run: Callable[[], None], lane: int, after: list[_Copy]) -> None:
        self.run, self.lane, self.after, self.done = run, lane, after, False
