"""The thread blocks that run together: their registers, special registers, shared memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .memory import Memory, Shared
from .types import PRED, Array, Type

if TYPE_CHECKING:
    from .counters import Counters
    from .races import Accesses

#: Threads of a warp.
WARP = 32

#: Threads of a group: all, or their sorted numbers in the batch.
Threads = slice | Array

ALL = slice(None)


class Batch:
    """Some thread blocks of a launch.

    Threads are numbered in the batch; a thread block begins at a multiple of 32, so that its last warp may have numbers
    of threads that do not exist.

    Args:
        blocks: numbers of the thread blocks, in the launch.
        grid, block: three sizes each.
        registers: type of each.
        undefined: numbers of those that may be read before they are written.
        shared: bytes of shared memory of a thread block.
        memory: buffers.
        parameters: bytes of the kernel's parameters.
        counters: where what happens is counted.
        accesses: where accesses are kept for the search for races, if they are.
        random: source of what a seed decides.
    """

    def __init__(
        self,
        blocks: Array,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        registers: list[Type],
        undefined: list[int],
        shared: int,
        memory: Memory,
        parameters: bytes,
        counters: Counters,
        accesses: Accesses,
        random: np.random.Generator | None,
    ) -> None:
        self.blocks, self.grid, self.block = blocks, grid, block
        self.block_threads = block[0] * block[1] * block[2]
        self.pitch = -(-self.block_threads // WARP) * WARP
        self.count = len(blocks) * self.pitch
        self.memory, self.parameters, self.counters, self.accesses, self.random = (
            memory,
            parameters,
            counters,
            accesses,
            random,
        )
        self.shared = Shared(len(blocks), shared)
        self._types = registers
        self._registers: list[Array | None] = [None] * len(registers)
        self._shadows: list[Array | None] = [None] * len(registers)
        for number in undefined:
            type = registers[number]
            self._shadows[number] = np.full(self.count, True if type is PRED else 2**type.bits - 1, dtype=type.unsigned)
        numbers = np.arange(self.count)
        self.block_of = numbers // self.pitch
        self.in_block = (numbers % self.pitch).astype(np.uint32)
        self.exists = self.in_block < self.block_threads
        self.block_epoch = np.zeros(len(blocks), dtype=np.int64)  # barriers that the thread block has passed
        self.warp_epoch = np.zeros(self.count // WARP, dtype=np.int64)  # and the warp, of its own
        self.meeting = np.zeros(self.count // WARP, dtype=np.int64)  # instructions of warps that it has executed

    def register(self, number: int) -> Array:
        """Return a register of all threads, to read or write."""
        found = self._registers[number]
        if found is None:
            found = self._registers[number] = np.zeros(self.count, dtype=self._types[number].unsigned)
        return found

    def shadow(self, number: int, threads: Threads) -> Array | None:
        """Return the undefined bits of a register, or None if no thread of the batch has any."""
        found = self._shadows[number]
        return None if found is None else found[threads]

    def mark(self, number: int, threads: Threads, undefined: Array | None) -> None:
        """Set the undefined bits of a register; None means that all bits are defined."""
        held = self._shadows[number]
        if undefined is None or not undefined.any():
            if held is not None and isinstance(threads, slice):
                self._shadows[number] = None
            elif held is not None:
                held[threads] = 0
            return
        if held is None:
            held = self._shadows[number] = np.zeros(self.count, dtype=self._types[number].unsigned)
        held[threads] = undefined

    def numbers(self, threads: Threads) -> Array:
        """Return the numbers of a group's threads."""
        return np.arange(self.count) if isinstance(threads, slice) else threads

    def size(self, threads: Threads) -> int:
        """Return how many threads a group has."""
        return self.count if isinstance(threads, slice) else len(threads)

    def special(self, name: str, threads: Threads) -> Array | None:
        """Return a special register, as ``%tid.x``, or None if it is not known."""
        base, _, axis = name.partition(".")
        if base in ("%lanemask_lt", "%laneid", "%lanemask_eq"):
            lane = self.in_block[threads] % np.uint32(WARP)
            one = np.uint32(1) << lane
            return {"%laneid": lane, "%lanemask_eq": one, "%lanemask_lt": one - np.uint32(1)}[base]
        if axis not in ("x", "y", "z"):
            return None
        i = "xyz".index(axis)
        if base in ("%ntid", "%nctaid"):
            return np.asarray((self.block if base == "%ntid" else self.grid)[i], dtype=np.uint32)
        if base not in ("%tid", "%ctaid"):
            return None
        sizes = self.block if base == "%tid" else self.grid
        number = self.in_block[threads] if base == "%tid" else self.blocks[self.block_of[threads]].astype(np.uint32)
        below = sizes[0] * (sizes[1] if i == 2 else 1) if i else 1
        return (number // np.uint32(below) % np.uint32(sizes[i])).astype(np.uint32)


def special_known(name: str) -> bool:
    """True for a special register that :meth:`Batch.special` knows."""
    base, _, axis = name.partition(".")
    return base in ("%lanemask_lt", "%laneid", "%lanemask_eq") or (
        base in ("%tid", "%ntid", "%ctaid", "%nctaid") and axis in ("x", "y", "z")
    )
