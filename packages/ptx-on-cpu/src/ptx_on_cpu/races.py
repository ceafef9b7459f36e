"""The search for races: accesses of two threads to one address, one of them a store, and no barrier between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .batch import WARP, Batch, Threads
from .faults import Place, RaceFault
from .types import Array

#: Bits of a key that are left for an address in shared memory.
_SHARED = 20


class _Events(NamedTuple):
    """Accesses of an instruction: arrays with a number for each thread."""

    start: Array
    size: Array
    thread: Array
    write: Array
    atomic: Array
    block: Array
    block_epoch: Array
    warp_epoch: Array
    meeting: Array
    place: Array
    mergeable: Array  # whether it is a store that may meet others of the same value
    value: Array  # a digest of what such a store stores


class Accesses:
    """The accesses of a launch to global memory, and of the thread blocks that run together to shared memory.

    Args:
        wanted: False keeps nothing and finds nothing.
        racing_loads: True allows loads from global memory to race with stores.
    """

    def __init__(self, wanted: bool, racing_loads: bool = False) -> None:
        self._wanted, self._racing_loads = wanted, racing_loads
        self._global: list[_Events] = []
        self._shared: list[_Events] = []
        self._places: dict[Place, int] = {}

    def record(
        self,
        batch: Batch,
        threads: Threads,
        addresses: Array,
        size: int,
        place: Place,
        write: bool,
        atomic: bool = False,
    ) -> None:
        """Keep accesses to global memory."""
        if self._wanted and (write or not self._racing_loads):
            self._global.append(self._events(batch, threads, addresses, size, place, write, atomic))

    def record_shared(
        self,
        batch: Batch,
        threads: Threads,
        addresses: Array,
        size: int,
        place: Place,
        write: bool,
        atomic: bool = False,
        values: Sequence[Array] = (),
    ) -> None:
        """Keep accesses to shared memory. Other thread blocks, and later epochs, have other keys.

        Stores of equal ``values`` to one address do not conflict: Triton has threads store what others store, too.
        """
        if self._wanted:
            events = self._events(batch, threads, addresses, size, place, write, atomic)
            if values:
                digest = np.broadcast_to(_digest(values), addresses.shape)
                events = events._replace(mergeable=events.write, value=digest)
            epochs = events.block_epoch + (events.warp_epoch if batch.pitch == WARP else 0)
            key = (epochs * len(batch.blocks) + batch.block_of[threads]).astype(np.uint64) << np.uint64(_SHARED)
            self._shared.append(events._replace(start=events.start + key))

    def _events(
        self, batch: Batch, threads: Threads, addresses: Array, size: int, place: Place, write: bool, atomic: bool
    ) -> _Events:
        block = batch.block_of[threads]
        numbers = batch.numbers(threads)
        number = self._places.setdefault(place, len(self._places))
        plain = [np.broadcast_to(np.asarray(each), addresses.shape) for each in (size, write, atomic, number)]
        return _Events(
            start=addresses,
            size=plain[0],
            thread=batch.blocks[block] * batch.pitch + batch.in_block[threads],
            write=plain[1],
            atomic=plain[2],
            block=batch.blocks[block],
            block_epoch=batch.block_epoch[block],
            warp_epoch=batch.warp_epoch[numbers // WARP],
            meeting=batch.meeting[numbers // WARP],
            place=plain[3],
            mergeable=np.zeros(addresses.shape, dtype=bool),
            value=np.zeros(addresses.shape, dtype=np.uint64),
        )

    def search_shared(self) -> None:
        """Search accesses to shared memory, and forget them.

        Raises:
            RaceFault: two of them conflict.
        """
        self._search(self._shared, "shared address", (1 << _SHARED) - 1)
        self._shared = []

    def search_global(self) -> None:
        """Search accesses to global memory.

        Raises:
            RaceFault: two of them conflict.
        """
        self._search(self._global, "address", (1 << 64) - 1)
        self._global = []

    def _search(self, kept: list[_Events], what: str, mask: int) -> None:
        if not any(each.write[:1].any() for each in kept):
            return
        events = _Events(*(np.concatenate(columns) for columns in zip(*kept, strict=True)))
        for first, second in _suspects(events):
            if _conflict(events, first, second):
                places = list(self._places)
                one, other = (places[events.place[i]] for i in (first, second))
                threads = " and ".join(_named(events, i) for i in (first, second))
                raise RaceFault(
                    one,
                    f"{threads} access {what} {int(events.start[second]) & mask:#x} with no barrier between, "
                    f"and one of them writes; the second by\n  {other}",
                )


def _digest(values: Sequence[Array]) -> Array:
    """Return a number for the values of each thread that differs where they do."""
    found: Array = np.zeros(1, dtype=np.uint64)
    for value in values:
        found = (found * np.uint64(0x9E3779B97F4A7C15)) ^ value.astype(np.uint64)
    return found


def _named(events: _Events, i: int) -> str:
    return f"thread {int(events.thread[i])} of the launch (block {int(events.block[i])})"


def _suspects(events: _Events) -> list[tuple[int, int]]:
    """Return pairs of accesses that overlap, of different threads and with a store.

    Accesses are sorted by address. A group of accesses that overlap, one after another, is compared pair by pair only
    if two threads are in it and one of them stores.
    """
    order = np.lexsort((events.thread, events.start))
    start = events.start[order]
    end = np.maximum.accumulate(start + events.size[order].astype(np.uint64))
    fresh = np.concatenate(([True], start[1:] >= end[:-1]))
    first = np.flatnonzero(fresh)
    thread, plain_write, write = (each[order] for each in (events.thread, events.write & ~events.atomic, events.write))
    several = np.minimum.reduceat(thread, first) != np.maximum.reduceat(thread, first)
    stores = np.logical_or.reduceat(plain_write, first) | (
        np.logical_or.reduceat(write, first) & ~np.logical_and.reduceat(events.atomic[order], first)
    )
    found: list[tuple[int, int]] = []
    bounds = np.append(first, len(order))
    for group in np.flatnonzero(several & stores & ~_merged(events, order, first)):
        members = order[bounds[group] : bounds[group + 1]]
        found += _pairs(events, members)
    return found


def _merged(events: _Events, order: Array, first: Array) -> Array:
    """Return for each group whether it is of equal stores that may meet, and of nothing else."""
    found = np.logical_and.reduceat(events.mergeable[order], first)
    for column in (events.start, events.size, events.place, events.value):
        found &= np.minimum.reduceat(column[order], first) == np.maximum.reduceat(column[order], first)
    return found


def _pairs(events: _Events, members: Array) -> list[tuple[int, int]]:
    """Return pairs of a group in which a store meets an access of another thread, at most one for each store."""
    found = []
    for i in members[events.write[members]]:
        begin, end = events.start[i], events.start[i] + np.uint64(events.size[i])
        overlap = (events.start[members] < end) & (
            events.start[members] + events.size[members].astype(np.uint64) > begin
        )
        met = members[overlap & (events.thread[members] != events.thread[i])]
        conflicts = [int(j) for j in met if _conflict(events, int(i), int(j))]
        found += [(int(i), j) for j in conflicts[:1]]
    return found


def _conflict(events: _Events, i: int, j: int) -> bool:
    """True for accesses of which neither is ordered before the other.

    Barriers order all accesses. Within a warp, a shuffle or reduction orders loads before it and stores after it: the
    load has returned what the shuffle hands on.
    """
    if events.thread[i] == events.thread[j] or (events.atomic[i] and events.atomic[j]):
        return False
    if events.block[i] != events.block[j]:
        return True
    if _equal_stores(events, i, j):
        return False
    if events.block_epoch[i] != events.block_epoch[j]:
        return False
    if events.thread[i] // WARP != events.thread[j] // WARP:
        return True
    if events.warp_epoch[i] != events.warp_epoch[j]:
        return False
    load, store = (i, j) if events.write[j] else (j, i)
    return bool(events.write[load] or events.meeting[load] >= events.meeting[store])


def _equal_stores(events: _Events, i: int, j: int) -> bool:
    """True for two stores of one value to one address by one instruction."""
    columns = (events.mergeable, events.start, events.size, events.place, events.value)
    return bool(events.mergeable[i] and all(column[i] == column[j] for column in columns))
