"""A forecast of paging without tensors: the waits of a pass, and the savings of pages that stay.

It follows the order of :mod:`lionbits.paging.prefetch`, with durations in place of copies. A test compares it with
paging itself on copy streams that only count time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple


class Event(NamedTuple):
    """An interval in which a copy stream or the device is busy, in seconds since the pass began."""

    kind: str  # "prefetch", "compute" or "write back"
    page: int
    begin: float
    end: float


class Machine(NamedTuple):
    """Bandwidths in bytes per second."""

    prefetch: float
    write_back: float
    compute: float  # of the update, in bytes of state


def schedule(sizes: Sequence[int], machine: Machine, buffers: int) -> list[Event]:
    """Return every event of one pass over pages of these sizes, in the order in which paging queues them."""
    events: list[Event] = []
    came: list[float] = []
    free = [0.0] * buffers
    computed = left = 0.0
    for i, size in enumerate(sizes):
        while len(came) < min(i + buffers, len(sizes)):
            j = len(came)
            begin = max(came[-1] if came else 0.0, free[j % buffers])
            came.append(begin + sizes[j] / machine.prefetch)
            events.append(Event("prefetch", j, begin, came[-1]))
        begin = max(computed, came[i])
        computed = begin + size / machine.compute
        events.append(Event("compute", i, begin, computed))
        begin = max(left, computed)
        left = free[i % buffers] = begin + size / machine.write_back
        events.append(Event("write back", i, begin, left))
    return events


def stalls(events: Sequence[Event]) -> list[float]:
    """Return how long the device waited before it updated each page."""
    computing = [event for event in events if event.kind == "compute"]
    ends = [0.0, *(event.end for event in computing)]
    return [event.begin - end for event, end in zip(computing, ends, strict=False)]


def hit_rate(policy: str, pages: int, room: int, passes: int = 20) -> float:
    """Return the fraction of page uses that find their page on the device, after the first pass.

    Args:
        policy: ``"staying"``: some pages stay and the others use one buffer; ``"lru"``: the page that was used
            longest ago is replaced; ``"belady"``: the one that will be used latest is, which is optimal.
        pages: all of the same size, used in the same order at every pass.
        room: pages that the device holds.
        passes: how often all are used.
    """
    uses = [page for _ in range(passes) for page in range(pages)]
    if room >= pages:
        return 1.0
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for at, page in enumerate(uses):
        if page in held:
            hits += at >= pages
            held.move_to_end(page)
            continue
        if len(held) >= room:
            held.pop(_victim(policy, held, at, pages))
        held[page] = None
    return hits / (len(uses) - pages)


def _victim(policy: str, held: OrderedDict[int, None], at: int, pages: int) -> int:
    if policy == "lru":
        return next(iter(held))
    if policy == "staying":
        return max(held)  # those that came first stay; the last place is the one that others pass through
    return max(held, key=lambda page: (page - at) % pages)
