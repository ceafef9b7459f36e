"""Paging waits as the forecast says, and to keep some pages on the device is the best policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from lionbits.paging.pages import cut
from lionbits.paging.streams import Event
from lionbits_bench import forecast
from lionbits_reference.spec import FLOAT32, Plan, Slot

from .family import train, weights
from .movers import moving

PLAIN = Plan(torch.float32, torch.float32, FLOAT32)


class Timed:
    """Copy streams that only count time, and record their events."""

    def __init__(self, machine: forecast.Machine, sizes: list[int]) -> None:
        self.machine, self.sizes = machine, sizes
        self.now = {"prefetch": 0.0, "compute": 0.0, "write back": 0.0}
        self.count = dict.fromkeys(self.now, 0)
        self.events: list[forecast.Event] = []

    def work(self, kind: str, speed: float, after: Sequence[Event]) -> float:
        page = self.count[kind]
        self.count[kind] += 1
        begin = max(self.now[kind], *(event or 0.0 for event in after), 0.0)
        self.now[kind] = begin + self.sizes[page] / speed
        self.events.append(forecast.Event(kind, page, begin, self.now[kind]))
        return self.now[kind]

    def prefetch(self, copy: Callable[[], None], after: Sequence[Event]) -> Event:
        copy()
        return self.work("prefetch", self.machine.prefetch, after)

    def write_back(self, copy: Callable[[], None], after: Sequence[Event]) -> Event:
        copy()
        return self.work("write back", self.machine.write_back, after)

    def computed(self) -> Event:
        return self.now["compute"]

    def compute_after(self, event: Event) -> None:
        self.work("compute", self.machine.compute, [event])

    def settle(self) -> None:
        pass


@pytest.mark.parametrize("machine", [(50, 50, 900), (50, 40, 60), (10, 60, 30), (60, 10, 500), (55, 55, 20)])
def test_the_engine_keeps_to_the_forecast(machine: tuple[float, float, float]) -> None:
    """Event by event, the times are those of the forecast, whichever of the three is slowest."""
    params = weights(shapes=[(rows, 64) for rows in (100, 90, 100, 10, 100, 100, 70)])
    sizes = [param.numel() * 4 for param in params]
    timed = Timed(forecast.Machine(*machine), sizes)
    optimizer = moving(params, 100 * 64 * 4, 3 * 100 * 64 * 4, lambda device: timed)
    train(optimizer, params, [1])
    pages = cut(PLAIN, [Slot(p, optimizer.state[p], 0) for p in params], range(7), 100 * 64 * 4)
    assert [page.size for page in pages] == sizes
    assert timed.events == forecast.schedule(sizes, timed.machine, 3)


def test_staying_pages_are_as_good_as_knowing_the_future() -> None:
    """LRU finds nothing on a cyclic scan; pages that stay find what the optimum finds, but for the place of passage."""
    for pages, room in [(10, 3), (50, 25), (7, 6), (100, 10)]:
        assert forecast.hit_rate("lru", pages, room) == 0
        best, ours = forecast.hit_rate("belady", pages, room), forecast.hit_rate("staying", pages, room)
        assert ours == (room - 1) / pages
        assert ours <= best <= room / pages
    assert forecast.hit_rate("lru", 5, 5) == 1
