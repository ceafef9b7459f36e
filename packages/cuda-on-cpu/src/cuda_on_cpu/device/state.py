"""The simulated devices of a process, while there are any."""

from __future__ import annotations

from .faults import DeviceFault
from .guard import library
from .memory import Memory, reclaim
from .schedule import Queue, Schedule


class World:
    """Devices, their streams and their memory.

    Args:
        seed: of the schedule.
        devices: how many there are.
        capacity: bytes of memory of each.
    """

    def __init__(self, seed: int, devices: int, capacity: int) -> None:
        self.devices, self.schedule = devices, Schedule(seed)
        self.memory = Memory(self.schedule, capacity, devices)
        self.default = [Queue(self.schedule, index) for index in range(devices)]
        self._current = list(self.default)

    def device(self) -> int:
        """Index of the current device of this thread."""
        return int(library().current_device())

    def set_device(self, index: int) -> None:
        """Make a device the current one of this thread.

        Raises:
            DeviceFault: there is none of that index.
        """
        if not 0 <= index < self.devices:
            raise DeviceFault(f"device index {index}: there are {self.devices} (cudaErrorInvalidDevice)")
        library().set_current_device(index)

    def current_queue(self, device: int) -> Queue:
        """The current stream of a device. All threads share it: a backward pass computes where its caller does."""
        return self._current[device]

    def set_queue(self, queue: Queue) -> None:
        """Make a stream the current one of its device."""
        self._current[queue.device] = queue

    def queue(self, number: int) -> Queue:
        """Return the stream of this number, which is what kernels are launched on."""
        return self.schedule.queues[number - 1]

    def synchronize(self, queue: Queue, what: str) -> None:
        """Make the host wait for the work of a stream."""
        self.schedule.forbid_in_capture(what)
        moment = self.schedule.record(queue)
        self.schedule.until(lambda: moment.done, what)


def current() -> World:
    """Return the devices, with all memory reclaimed that is no longer used.

    Raises:
        DeviceFault: there are none.
    """
    if _world is None:
        raise DeviceFault("there is no simulated device here: the tensor is used outside of `simulated_cuda()`")
    reclaim()
    return _world


def enter(world: World | None) -> World | None:
    """Make these the devices of the process; return those of before."""
    global _world
    before, _world = _world, world
    library().set_present(world is not None)
    return before


_world: World | None = None
