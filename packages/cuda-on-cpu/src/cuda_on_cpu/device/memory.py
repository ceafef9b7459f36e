"""Memory of the simulated devices: a caching allocator per device, and pinned memory.

A block that is freed may be handed out again at once to the stream that it was allocated on: work there that uses it
runs before. Work of other streams may still use it, unless the block was recorded on them. To show that, freed memory
is filled with 0xFF in the order of its stream.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import guard
from .schedule import Moment, Queue, Schedule, Work

if TYPE_CHECKING:
    from .graphs import Graph

#: Sizes of blocks are multiples of this, as in torch.
UNIT = 512

#: How likely a freed block is to be handed out again, where one fits.
REUSE = 0.9

#: How many times as large as what is asked for a block is at most that is handed out again.
MOST = 2

_numbers = itertools.count(1)
_owners: dict[int, tuple[Memory, Block]] = {}  # by the number that C++ has


@dataclass(eq=False)
class Block:
    """Memory that a tensor has, or had.

    Attributes:
        buffer: uint8, on the host: the memory itself.
        queue: stream that it was allocated on; None: it is pinned memory of the host.
        generation: how often the host gave it back.
        overwritten: the generation that its stream has reached: work of earlier ones comes too late.
        size: bytes that were asked for.
        used_on: other streams that it was recorded on.
        uses: moments after which pinned memory is no longer used by copies.
        graph: that it was allocated in.
    """

    buffer: Tensor
    queue: Queue | None
    size: int
    generation: int = 0
    overwritten: int = 0
    used_on: set[Queue] = field(default_factory=set)
    uses: list[Moment] = field(default_factory=list)
    graph: Graph | None = None

    @property
    def address(self) -> int:
        """Address of the first byte."""
        return self.buffer.data_ptr()


class Memory:
    """The allocators of some devices, and of pinned memory.

    Args:
        schedule: runs the work of their streams.
        capacity: bytes of each device.

    Attributes:
        allocated: bytes in use, by device.
        peak: the most there were.
        pinned_bytes: bytes of pinned memory in use, each allocation rounded up to a power of two, as torch does.
        failures: so many of the allocations to come raise ``torch.OutOfMemoryError``,
        failing_size: of those of at least so many bytes.
    """

    def __init__(self, schedule: Schedule, capacity: int, devices: int) -> None:
        self._schedule, self.capacity = schedule, capacity
        self.allocated, self.peak, self.failures, self.failing_size = [0] * devices, [0] * devices, 0, 0
        self.pinned_bytes = 0
        self._cached: list[Block] = []
        self._pending: list[tuple[Block, list[Moment]]] = []
        self._addresses: list[int] = []
        self._blocks: list[Block] = []  # in the order of their addresses; blocks are never taken apart

    def allocate(self, size: int, queue: Queue) -> Tensor:
        """Return uint8[size] on the stream's device, with any content.

        Raises:
            torch.OutOfMemoryError: the device has no room, or ``failures`` asked for it.
        """
        self._collect()
        taken = -(-size // UNIT) * UNIT
        fails = self.failures > 0 and size >= self.failing_size
        self.failures -= fails
        if fails or self.allocated[queue.device] + taken > self.capacity:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes on the simulated device {queue.device}, of whose "
                f"{self.capacity} bytes {self.allocated[queue.device]} are allocated."
            )
        block = self._reused(taken, queue) or self._fresh(taken, queue)
        block.size, block.graph = size, queue.graph
        self.allocated[queue.device] += block.buffer.numel()
        self.peak[queue.device] = max(self.peak[queue.device], self.allocated[queue.device])
        return self._tensor(block, size, queue.device)

    def pin(self, size: int) -> Tensor:
        """Return uint8[size] of pinned memory on the host, with any content.

        Raises:
            CaptureViolation: a graph is being captured.
        """
        self._schedule.forbid_in_capture("allocating pinned memory")
        self._schedule.counts["pinned allocations"] += 1
        self._collect()
        taken = max(_power_of_two(size), UNIT)
        block = self._reused(taken, None) or self._fresh(taken, None)
        block.size = size
        self.pinned_bytes += _power_of_two(size)
        return self._tensor(block, size, -1)

    def blocks_at(self, *addresses: int) -> list[tuple[Block, int]]:
        """Return the blocks that hold any of these addresses, each with its generation."""
        found: dict[int, tuple[Block, int]] = {}
        for address in addresses:
            i = bisect.bisect_right(self._addresses, address) - 1
            if i >= 0 and address < self._addresses[i] + self._blocks[i].buffer.numel():
                found[i] = (self._blocks[i], self._blocks[i].generation)
        return list(found.values())

    def pinned_at(self, address: int) -> Block | None:
        """Return the block of pinned memory that holds this address."""
        for block, _ in self.blocks_at(address):
            return block if block.queue is None else None
        return None

    def free(self, block: Block) -> None:
        """Take a block back."""
        if block.queue is None:
            self.pinned_bytes -= _power_of_two(block.size)
            self._pending.append((block, block.uses))
            block.uses = []
            return
        self.allocated[block.queue.device] -= block.buffer.numel()
        if block.graph is not None and not block.graph.capturing:
            return  # replays use it
        others = [self._schedule.record(queue) for queue in block.used_on - {block.queue}]
        block.used_on = set()
        if others:
            self._pending.append((block, others))
        else:
            self._give_back(block)

    def _collect(self) -> None:
        """Take back blocks whose other streams have let go of them."""
        pending, self._pending = self._pending, []
        for block, moments in pending:
            if all(moment.done for moment in moments):
                self._give_back(block)
            else:
                self._pending.append((block, moments))

    def _give_back(self, block: Block) -> None:
        queue, graph = block.queue, None if block.queue is None else block.queue.graph
        if graph is not None and block.graph is graph:  # for the rest of the capture
            graph.nodes.append(Work("freeing", partial(_overwrite, block, block.generation)))
        else:
            block.generation += 1
            if queue is None:
                _overwrite(block, block.generation)
            else:
                queue.waiting.append(Work("freeing", partial(_overwrite, block, block.generation)))
        self._cached.append(block)

    def _reused(self, taken: int, queue: Queue | None) -> Block | None:
        graph = None if queue is None else queue.graph
        fitting = [
            block
            for block in self._cached
            if block.queue is queue and block.graph is graph and taken <= block.buffer.numel() <= MOST * taken
        ]
        if not fitting or self._schedule.random.random() > REUSE:
            return None
        block = self._schedule.random.choice(fitting)
        self._cached.remove(block)
        return block

    def _fresh(self, taken: int, queue: Queue | None) -> Block:
        block = Block(torch.full((taken,), 0xFF, dtype=torch.uint8, device="cpu"), queue, taken)
        i = bisect.bisect(self._addresses, block.address)
        self._addresses.insert(i, block.address)
        self._blocks.insert(i, block)
        return block

    def _tensor(self, block: Block, size: int, device: int) -> Tensor:
        number = next(_numbers)
        _owners[number] = (self, block)
        return guard.bytes_at(block.address, size, device, number)


def reclaim() -> None:
    """Free the blocks whose last tensors have died since the last call."""
    for number in guard.freed():
        memory, block = _owners.pop(number)
        memory.free(block)


def _overwrite(block: Block, generation: int) -> None:
    block.overwritten = generation
    block.buffer.fill_(0xFF)


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length() if size else 0
