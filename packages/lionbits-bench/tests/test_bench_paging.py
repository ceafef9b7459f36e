"""The pictures of docs/paging.md are drawn of the engine's own arithmetic."""

from __future__ import annotations

from pathlib import Path

from lionbits_bench import paging
from lionbits_bench.forecast import schedule, stalls


def test_both_are_drawn(tmp_path: Path) -> None:
    drawn = paging.draw(tmp_path)
    assert [path.name for path in drawn] == ["paging-schedule.png", "paging-hits.png"]
    assert all(path.stat().st_size > 10_000 for path in drawn)


def test_on_paper_the_bus_is_what_a_pass_waits_for() -> None:
    """The update is faster than the bus: a pass takes what bringing all pages takes, and one page on its way out."""
    events = schedule([paging.PAGE] * paging.PAGES, paging.PAPER, paging.FRAMES)
    bus = paging.PAGES * paging.PAGE / paging.PAPER.prefetch
    last = paging.PAGE / paging.PAPER.compute + paging.PAGE / paging.PAPER.write_back
    assert abs(events[-1].end - (bus + last)) < 1e-9
    assert sum(stalls(events)) > 0
