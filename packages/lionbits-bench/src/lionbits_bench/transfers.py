"""Copies between host and device, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

#: Directions in which pages are copied: to the device, from it, both at once.
WAYS = ("in", "out", "both")

#: Share of the best bandwidth that a page has to reach to be large enough.
ENOUGH = 0.97


@dataclass
class Crossing:
    """Copies of pages between pinned memory and the device, and the seconds of all of them, measured several times."""

    page_size: int
    way: str
    bytes_moved: int
    seconds: list[float] = field(default_factory=list)

    @property
    def bandwidth(self) -> float:
        """Median bandwidth, in bytes per second; for both ways at once, of both together."""
        return self.bytes_moved / median(self.seconds)


@dataclass
class TransferStats:
    """Copies of one step of a paged optimizer, from its own counts.

    Attributes:
        state_bytes: of all state, wherever it is.
        budget: of state on the device; None: what there is room for.
        page_size: the largest that a page may be.
        bytes_in, bytes_out: copied to where the update runs, and written back.
        pages: prefetched.
        passing_bytes: of the staging buffers.
        shrinks: how often the device had less room than the budget allows, since the optimizer was made.
        resident_seconds: of a step of the same list, all of whose state is on the device.
        bus: the best bandwidth both ways at once.
        forecast_seconds: what lionbits_bench.forecast says of such a step.
        device_bytes: the most in tensors on the device during a step, without parameters and gradients.
    """

    state_bytes: int
    budget: int | None
    page_size: int
    bytes_in: int
    bytes_out: int
    pages: int
    passing_bytes: int
    shrinks: int
    resident_seconds: float | None = None
    bus: float | None = None
    forecast_seconds: float | None = None
    device_bytes: int | None = None

    def bandwidth(self, seconds: float | None) -> float | None:
        """Return bytes per second of a step that takes so long, both ways together."""
        return None if seconds is None else (self.bytes_in + self.bytes_out) / seconds

    def of_bus(self, seconds: float | None) -> float | None:
        """Return that bandwidth as a fraction of the bus's."""
        ours = self.bandwidth(seconds)
        return None if ours is None or self.bus is None else ours / self.bus


def best(crossings: Sequence[Crossing], way: str) -> float | None:
    """Return the best bandwidth that way over page sizes; None if it was not measured."""
    return max((crossing.bandwidth for crossing in crossings if crossing.way == way), default=None)


def enough(crossings: Sequence[Crossing]) -> int | None:
    """Return the smallest page that reaches 97 % of the best both ways at once; None if that was not measured."""
    top = best(crossings, "both")
    sizes = (c.page_size for c in crossings if c.way == "both" and top is not None and c.bandwidth >= ENOUGH * top)
    return min(sizes, default=None)


def memory(count: int) -> str:
    """Return a page's size as text, in whole units."""
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"
