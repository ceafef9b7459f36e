"""Charts of paging, drawn from the forecast: a pass over pages, and the savings of pages that stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .forecast import Event, Machine, hit_rate, schedule, stalls

#: An accelerator with a PCIe 5 bus and HBM3, bytes per second; updating 8-bit state moves eight times the state.
PAPER = Machine(prefetch=50e9, write_back=50e9, compute=3e12 / 8)

#: Bytes of a page, pages of a pass, staging buffers.
PAGE, PAGES, FRAMES = 16 << 20, 12, 3

COLOURS = {"prefetch": "tab:blue", "compute": "tab:green", "write back": "tab:orange"}
POLICIES = {"belady": "knowing the future", "staying": "some stay (lionbits)", "lru": "the most recent ones (LRU)"}


def draw(out: Path) -> list[Path]:
    """Draw both charts in this folder; return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    return [
        draw_schedule(schedule([PAGE] * PAGES, PAPER, FRAMES), out / "paging-schedule.png"),
        draw_hits(40, out / "paging-hits.png"),
    ]


def draw_schedule(events: Sequence[Event], path: Path) -> Path:
    """Draw the copy streams and the device as rows, with time to the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    for row, (kind, colour) in enumerate(COLOURS.items()):
        for event in (event for event in events if event.kind == kind):
            axes.barh(-row, 1e3 * (event.end - event.begin), left=1e3 * event.begin, color=colour, edgecolor="white")
            if event.end - event.begin > events[-1].end / 40:
                middle = 1e3 * (event.begin + event.end) / 2
                axes.text(middle, -row, str(event.page + 1), ha="center", va="center", color="white", fontsize=8)
    waited = sum(stalls(events))
    axes.set_yticks(range(0, -len(COLOURS), -1), list(COLOURS))
    axes.set_xlabel(f"ms; of {1e3 * events[-1].end:.2f} ms the device waits {1e3 * waited:.2f}")
    figure.savefig(path, dpi=150)
    return path


def draw_hits(pages: int, path: Path) -> Path:
    """Draw the hit rate against the pages that the device holds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for policy, name in POLICIES.items():
        rates = [hit_rate(policy, pages, room) for room in range(1, pages + 1)]
        axes.plot([100 * room / pages for room in range(1, pages + 1)], [100 * rate for rate in rates], label=name)
    axes.set_xlabel("% of the state that the device holds")
    axes.set_ylabel("% of page uses that find the page there")
    axes.legend()
    figure.savefig(path, dpi=150)
    return path
