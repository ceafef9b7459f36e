"""The simulated devices as tests use them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from . import guard, operators, patches, state
from .schedule import Work

#: Bytes of memory of a device.
CAPACITY = 1 << 30


class Simulation:
    """Devices while a block of :func:`simulated_cuda` runs."""

    def __init__(self, world: state.World) -> None:
        self._world = world

    @property
    def counts(self) -> Counter[str]:
        """``launches``, ``uploads``, ``downloads``, ``host waits`` and ``pinned allocations`` so far."""
        return self._world.schedule.counts

    @property
    def pinned_bytes(self) -> int:
        """Bytes of pinned memory in use, each allocation rounded up to a power of two, as torch does it."""
        return state.current().memory.pinned_bytes

    def fail_allocations(self, count: int, at_least: int = 0) -> None:
        """Let the next ``count`` allocations of ``at_least`` so many bytes raise ``torch.OutOfMemoryError``."""
        self._world.memory.failures, self._world.memory.failing_size = count, at_least

    def finish(self) -> None:
        """Run all work of all streams.

        Raises:
            DeviceFault: work that it finds at fault, or that can never run.
        """
        for queue in list(self._world.schedule.queues):
            self._world.synchronize(queue, "the end of the simulation")


@contextmanager
def simulated_cuda(seed: int = 0, devices: int = 2, capacity: int = CAPACITY) -> Iterator[Simulation]:
    """Give torch some CUDA devices, and take them away again, after all their work was run.

    Import this module, or enter this once, before the first backward of a process: torch counts devices then.

    Args:
        seed: of the order in which streams run, and memory is used again.
        devices: how many there are: 1 or 2.
        capacity: bytes of memory of each.

    Raises:
        ValueError: another number of devices.
        RuntimeError: torch is built for GPUs, or there are simulated devices already.
        DeviceFault: at the end, for work that was still queued.
    """
    if not 1 <= devices <= guard.DEVICES:
        raise ValueError(f"devices={devices}: must be 1 to {guard.DEVICES}")
    world = state.World(seed, devices, capacity)
    guard.library()
    operators.register()
    before = state.enter(world)
    if before is not None:
        state.enter(before)
        raise RuntimeError("there are simulated devices already: leave `simulated_cuda()` first")
    world.set_device(0)
    simulation = Simulation(world)
    try:
        with patches.patched():
            yield simulation
            simulation.finish()
    finally:
        state.enter(None)


def launch(name: str, kernel: Callable[[], None], stream: int, addresses: Sequence[int] = ()) -> None:
    """Queue a kernel, any function that works on memory by its addresses, on a stream.

    Args:
        name: for messages.
        kernel: does the work, when the stream reaches it.
        stream: number of the stream: what ``torch.cuda.Stream.cuda_stream`` says.
        addresses: of memory that it uses, so far as they are known; others are not watched.
    """
    world = state.current()
    world.schedule.counts["launches"] += 1
    world.schedule.submit(world.queue(stream), Work(name, kernel, world.memory.blocks_at(*addresses)))
