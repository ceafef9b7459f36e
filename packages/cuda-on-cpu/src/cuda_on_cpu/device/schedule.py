"""Streams as queues, and a schedule that runs their work in a random order of those that events permit."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .faults import CaptureViolation, Deadlock, UseOfFreedMemory

if TYPE_CHECKING:
    from .graphs import Graph
    from .memory import Block

#: Numbers of submissions that run at once, on average, after one submission: a schedule draws one of them.
EAGERNESS = (0.0, 0.1, 0.5, 0.9)

#: How likely a stream is to be next, beside others: each stream draws one.
WEIGHTS = (0.02, 0.3, 1.0)


@dataclass
class Moment:
    """A point in a stream: what an event records.

    Attributes:
        graph: in whose capture it was recorded, if in one.
        clock: of that stream in the capture.
    """

    done: bool = False
    graph: Graph | None = None
    clock: Counter[int] = field(default_factory=Counter)


@dataclass
class Work:
    """Something that a stream does.

    Attributes:
        name: for messages.
        run: does it.
        blocks: memory that it uses, each with its generation when the work was submitted.
    """

    name: str
    run: Callable[[], None]
    blocks: Sequence[tuple[Block, int]] = ()


class Queue:
    """A stream: work that runs in order.

    Attributes:
        device: index of its device.
        number: unique in its schedule, and the address that kernels launch on; 0 is no stream's.
        graph: that captures the stream at the moment.
        clock: in that capture, how much of each stream is ordered before the next work here.
    """

    def __init__(self, schedule: Schedule, device: int) -> None:
        self.device, self.number, self.weight = device, len(schedule.queues) + 1, schedule.random.choice(WEIGHTS)
        self.waiting: deque[Work | Moment] = deque()  # a moment that is not this stream's is waited for
        self.own: set[int] = set()  # ids of moments that this stream records
        self.graph: Graph | None = None
        self.clock: Counter[int] = Counter()
        schedule.queues.append(self)


class Schedule:
    """Runs the work of all streams, in an order that the seed draws.

    Attributes:
        counts: ``launches``, ``uploads``, ``downloads``, ``host waits`` and ``pinned allocations`` so far.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.eagerness = self.random.choice(EAGERNESS)
        self.queues: list[Queue] = []
        self.counts: Counter[str] = Counter()

    def submit(self, queue: Queue, work: Work) -> None:
        """Add work to a stream, or to the graph that captures it; then run some work, of any stream."""
        if queue.graph is not None:
            queue.clock[queue.number] += 1
            queue.graph.nodes.append(work)
            return
        queue.waiting.append(work)
        self.pause()

    def record(self, queue: Queue) -> Moment:
        """Return a moment after all work of the stream so far."""
        if queue.graph is not None:
            return Moment(done=True, graph=queue.graph, clock=Counter(queue.clock))
        moment = Moment()
        queue.own.add(id(moment))
        queue.waiting.append(moment)
        return moment

    def wait(self, queue: Queue, moment: Moment) -> None:
        """Let later work of the stream wait for a moment.

        Raises:
            CaptureViolation: a captured stream waits for a moment outside of its capture, or of another.
        """
        if queue.graph is None and moment.graph is not None and moment.graph.capturing:
            moment.graph.join(queue)
        if queue.graph is not moment.graph and queue.graph is not None:
            raise CaptureViolation(
                "a stream that is captured waits for an event that was not recorded in this capture "
                "(cudaErrorStreamCaptureIsolation). Wait before the capture begins, or record the event in it."
            )
        if queue.graph is not None:
            queue.clock |= moment.clock
        elif not moment.done:
            queue.waiting.append(moment)

    def pause(self) -> None:
        """Run some of the work that may run, or none."""
        while self.random.random() < self.eagerness and self._one():
            pass

    def until(self, done: Callable[[], bool], what: str) -> None:
        """Run work until the host has what it waits for.

        Raises:
            CaptureViolation: a graph is being captured.
            Deadlock: no work is left that may run.
        """
        self.forbid_in_capture(what)
        self.counts["host waits"] += 1
        while not done():
            if not self._one():
                raise Deadlock(f"{what}: no stream can go on, each waits for an event of another")

    def forbid_in_capture(self, what: str) -> None:
        """Refuse what is not permitted while any stream is captured.

        Raises:
            CaptureViolation: one is.
        """
        if any(queue.graph is not None for queue in self.queues):
            raise CaptureViolation(
                f"{what} is not permitted while a graph is captured (cudaErrorStreamCaptureUnsupported). Do it "
                f"before the capture begins."
            )

    def _one(self) -> bool:
        """Run the next work of a stream that may go on; False if there is none."""
        ready = [queue for queue in self.queues if queue.waiting and _may_run(queue)]
        if not ready:
            return False
        (queue,) = self.random.choices(ready, [queue.weight for queue in ready])
        work = queue.waiting.popleft()
        if isinstance(work, Work):
            run(work, queue)
        elif id(work) in queue.own:
            queue.own.discard(id(work))
            work.done = True
        return True


def run(work: Work, queue: Queue) -> None:
    """Do work whose turn has come.

    Raises:
        UseOfFreedMemory: its memory has been given back, in the order of the stream that it was allocated on.
    """
    for block, generation in work.blocks:
        if block.overwritten > generation:
            raise UseOfFreedMemory(
                f"{work.name} on stream {queue.number} uses {block.size} bytes at {block.address:#x} that were freed. "
                f"Call record_stream, keep the tensor until the work is done, or wait for that stream before it dies."
            )
    with torch.inference_mode(mode=False), torch.no_grad():
        work.run()


def _may_run(queue: Queue) -> bool:
    first = queue.waiting[0]
    return isinstance(first, Work) or first.done or id(first) in queue.own
