"""The order of execution: which threads run next, how far, and whom they wait for."""

from __future__ import annotations

import numpy as np

from .batch import ALL, WARP, Batch, Threads
from .counters import Counters
from .faults import DeadlockFault, UndefinedFault
from .program import Kind, Operation, Program
from .types import Array

#: A group of threads that can go on: the half of the warps that it belongs to, and its next instruction.
Key = tuple[int, int]


class Run:
    """The execution of a batch of thread blocks.

    Threads at the same instruction run together. Without a seed, those at the smallest instruction are next, which lets
    threads that parted meet again. With one, chance decides, and each warp belongs to one of two halves that run apart.
    """

    def __init__(self, program: Program, batch: Batch, counters: Counters) -> None:
        self._program, self._batch, self._counters = program, batch, counters
        self._exited = ~batch.exists
        self._ready: dict[Key, Array] = {}
        self._at_warp: dict[int, Array] = {}  # threads that wait for lanes, by instruction
        self._at_barrier = np.full(
            batch.count, -1, dtype=np.int64
        )  # the instruction at which a thread waits for its block
        warps = batch.count // WARP
        halves = np.zeros(warps, dtype=np.int64) if batch.random is None else batch.random.integers(0, 2, warps)
        self._half = np.repeat(halves, WARP)
        self._push(0, np.flatnonzero(batch.exists))

    def run(self) -> None:
        """Run all threads to their ends.

        Raises:
            Fault: the kernel breaks a rule.
        """
        while self._ready:
            key = self._next()
            self._segment(key[1], self._ready.pop(key))
        self._finish()

    def _next(self) -> Key:
        if self._batch.random is None or len(self._ready) == 1:
            return min(self._ready, key=lambda each: each[1])
        keys = sorted(self._ready)
        return keys[int(self._batch.random.integers(len(keys)))]

    def _push(self, at: int, threads: Array) -> None:
        """Make threads ready to go on at an instruction."""
        for half in (0, 1):
            chosen = threads if self._batch.random is None else threads[self._half[threads] == half]
            if len(chosen) and (half == 0 or self._batch.random is not None):
                key = (half, at)
                self._ready[key] = np.sort(np.concatenate((self._ready[key], chosen))) if key in self._ready else chosen

    def _segment(self, at: int, numbers: Array) -> None:
        """Run a group until it parts, ends or waits, or reaches a place where another group may join it."""
        operations, leaders = self._program.operations, self._program.leaders
        threads: Threads = ALL if len(numbers) == self._batch.count else numbers
        begin = at
        while at < len(operations):
            operation = operations[at]
            if operation.kind is not Kind.PLAIN:
                self._count(begin, at + 1, numbers)
                self._leave(at, operation, threads, numbers)
                return
            self._step(operation, threads, numbers)
            at += 1
            if at < len(operations) and leaders[at] and self._ready:
                self._count(begin, at, numbers)
                self._push(at, numbers)
                return
        self._count(begin, at, numbers)
        self._exited[numbers] = True

    def _count(self, begin: int, end: int, numbers: Array) -> None:
        warps = 1 + int(np.count_nonzero(np.diff(numbers // WARP)))
        self._counters.executed(begin, end, warps, len(numbers))

    def _step(self, operation: Operation, threads: Threads, numbers: Array) -> None:
        assert operation.step is not None
        if operation.guard is None:
            operation.step(self._batch, threads)
            return
        chosen = np.broadcast_to(operation.guard(self._batch, threads), numbers.shape)
        if chosen.all():
            operation.step(self._batch, threads)
        elif chosen.any():
            operation.step(self._batch, numbers[chosen])

    def _leave(self, at: int, operation: Operation, threads: Threads, numbers: Array) -> None:
        """Go on after an instruction that is not of one thread alone."""
        if operation.kind is Kind.WARP:
            self._arrive_at_warp(at, operation, numbers)
            return
        if operation.kind is Kind.BLOCK:
            self._arrive_at_barrier(at, operation, numbers)
            return
        chosen = np.ones(len(numbers), dtype=bool)
        if operation.guard is not None:
            chosen = np.broadcast_to(operation.guard(self._batch, threads), numbers.shape)
        taken, other = numbers[chosen], numbers[~chosen]
        if len(other):
            self._push(at + 1, other)
        if operation.kind is Kind.EXIT:
            self._exited[taken] = True
            self._after_exits()
        elif len(taken):
            self._push(operation.target, taken)

    def _arrive_at_warp(self, at: int, operation: Operation, numbers: Array) -> None:
        """Run an instruction for the warps of which all lanes of the mask that have not ended are there."""
        waiting = np.sort(np.concatenate((self._at_warp.pop(at), numbers))) if at in self._at_warp else numbers
        complete = self._complete(operation, waiting)
        if not complete.all():
            self._at_warp[at] = waiting[~complete]
        ready = waiting[complete]
        if len(ready):
            assert operation.step is not None
            operation.step(self._batch, ALL if len(ready) == self._batch.count else ready)
            self._batch.meeting[np.unique(ready // WARP)] += 1
            self._push(at + 1, ready)

    def _complete(self, operation: Operation, waiting: Array) -> Array:
        """Return for each thread whether all that it waits for are there."""
        assert operation.mask is not None
        masks = np.broadcast_to(operation.mask(self._batch, waiting), waiting.shape)
        alive = ~self._exited
        if len(waiting) == np.count_nonzero(alive) and (masks == np.uint32(2**32 - 1)).all():
            return np.ones(len(waiting), dtype=bool)
        lane = (waiting % WARP).astype(np.uint32)
        if not (masks >> lane & np.uint32(1)).all():
            raise UndefinedFault(operation.place, "a thread executes it that is not in its own mask")
        weights = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
        living = np.bitwise_or.reduce(np.where(alive.reshape(-1, WARP), weights, np.uint32(0)), axis=1)
        warp = waiting // WARP
        key = warp.astype(np.uint64) << np.uint64(32) | masks
        keys, group = np.unique(key, return_inverse=True)
        present = np.zeros(len(keys), dtype=np.uint32)
        np.bitwise_or.at(present, group, np.uint32(1) << lane)
        wanted = masks & living[warp]
        return np.asarray((wanted & ~present[group]) == 0)

    def _arrive_at_barrier(self, at: int, operation: Operation, numbers: Array) -> None:
        self._at_barrier[numbers] = at
        self._release_blocks()

    def _release_blocks(self) -> None:
        """Let the thread blocks go on all of whose threads wait at one barrier."""
        batch, at = self._batch, self._at_barrier.reshape(len(self._batch.blocks), -1)[:, : self._batch.block_threads]
        for block in np.flatnonzero((at >= 0).all(axis=1)):
            operations = [self._program.operations[i] for i in np.unique(at[block])]
            barriers = {int(each.mask(batch, ALL)) for each in operations if each.mask}
            if len(barriers) > 1:
                raise DeadlockFault(
                    operations[0].place, f"threads of a thread block wait at different barriers {sorted(barriers)}"
                )
            batch.block_epoch[block] += 1
            first = int(block) * batch.pitch
            numbers = np.arange(first, first + batch.block_threads)
            places = self._at_barrier[numbers]
            self._at_barrier[numbers] = -1
            for place in np.unique(places):
                self._push(int(place) + 1, numbers[places == place])

    def _after_exits(self) -> None:
        """Look again at warps that waited for lanes that have ended."""
        for at in list(self._at_warp):
            waiting = self._at_warp.pop(at)
            self._arrive_at_warp(at, self._program.operations[at], waiting)

    def _finish(self) -> None:
        """Check that nobody waits.

        Raises:
            DeadlockFault: somebody does.
        """
        for at, waiting in self._at_warp.items():
            operation = self._program.operations[at]
            thread = int(waiting[0])
            raise DeadlockFault(operation.place, f"{self._named(thread)} waits for lanes of its mask that never come")
        waiting = np.flatnonzero(self._at_barrier >= 0)
        if len(waiting):
            place = self._program.operations[self._at_barrier[waiting[0]]].place
            block = self._batch.block_of[waiting[0]]
            there = int(np.count_nonzero(self._batch.block_of[waiting] == block))
            many = f"{there} of {self._batch.block_threads} threads"
            raise DeadlockFault(
                place, f"{self._named(int(waiting[0]))} waits at a barrier that only {many} of its thread block reach"
            )

    def _named(self, thread: int) -> str:
        block = int(self._batch.blocks[self._batch.block_of[thread]])
        return f"thread {int(self._batch.in_block[thread])} of thread block {block}"
