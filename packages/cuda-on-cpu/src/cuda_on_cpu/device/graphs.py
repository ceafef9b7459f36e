"""Graph capture: work is recorded instead of run, and each replay runs it again, with the memory of the capture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .faults import CaptureViolation, UseOfFreedMemory
from .schedule import Queue, Work
from .state import current
from .streams import Stream, stream, synchronize


class Graph:
    """Work in the order of its capture, which is one that its events permit.

    Attributes:
        nodes: the work.
        capturing: whether it is being captured.
    """

    def __init__(self) -> None:
        self.nodes: list[Work] = []
        self.queues: list[Queue] = []
        self.capturing = False

    def join(self, queue: Queue) -> None:
        """Let the capture take in a stream, which waited for work of it."""
        queue.graph = self
        queue.clock.clear()
        self.queues.append(queue)

    def end(self) -> bool:
        """End the capture; False if a stream was not joined to the first again."""
        first = self.queues[0].clock
        whole = all(queue.clock[queue.number] <= first[queue.number] for queue in self.queues)
        for queue in self.queues:
            queue.graph = None
            queue.clock.clear()
        self.queues, self.capturing = [], False
        return whole


class CUDAGraph:
    """``torch.cuda.CUDAGraph``."""

    def __init__(self, keep_graph: bool = False) -> None:
        del keep_graph
        self._graph: Graph | None = None

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        """Capture the current stream from now on.

        Raises:
            CaptureViolation: it is the default stream, or there is a capture already.
        """
        del pool, capture_error_mode
        world = current()
        queue = world.current_queue(world.device())
        world.schedule.forbid_in_capture("a capture in a capture")
        if queue in world.default:
            raise CaptureViolation("CUDA graphs must be captured on a non-default stream: use torch.cuda.graph()")
        self._graph = Graph()
        self._graph.capturing = True
        self._graph.join(queue)

    def capture_end(self) -> None:
        """End the capture.

        Raises:
            CaptureViolation: a stream that the capture took in was not waited for by the first.
        """
        if self._graph is None or not self._graph.capturing:
            raise CaptureViolation("capture_end() without capture_begin()")
        if not self._graph.end():
            self._graph = None
            raise CaptureViolation(
                "a stream that waited for the captured one was not joined again (cudaErrorStreamCaptureUnjoined): let "
                "the first stream wait for its work before the capture ends."
            )

    def replay(self) -> None:
        """Submit the work to the current stream.

        Raises:
            CaptureViolation: nothing has been captured.
            UseOfFreedMemory: memory that the work uses was freed since.
        """
        if self._graph is None or self._graph.capturing:
            raise CaptureViolation("replay() of a graph that was not captured")
        world = current()
        for work in self._graph.nodes:
            for block, generation in work.blocks:
                if block.generation != generation:
                    raise UseOfFreedMemory(
                        f"{work.name} in a graph uses {block.size} bytes at {block.address:#x}, which were freed since "
                        f"it was captured. Keep what replays read."
                    )
        for work in self._graph.nodes:
            world.schedule.submit(world.current_queue(world.device()), work)

    def reset(self) -> None:
        """Forget the work."""
        self._graph = None

    def pool(self) -> int:
        """Return a name of its memory; every graph has memory of its own here."""
        return id(self)


@contextmanager
def graph(
    cuda_graph: CUDAGraph, pool: Any = None, stream: Stream | None = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    """``torch.cuda.graph``: capture the block on a stream of its own."""
    synchronize()
    with on(Stream() if stream is None else stream):
        cuda_graph.capture_begin(pool, capture_error_mode)
        try:
            yield
        except BaseException:
            assert cuda_graph._graph is not None
            cuda_graph._graph.end()
            cuda_graph.reset()
            raise
        cuda_graph.capture_end()


on = stream


def is_current_stream_capturing() -> bool:
    """True if the current stream is being captured."""
    world = current()
    return world.current_queue(world.device()).graph is not None
