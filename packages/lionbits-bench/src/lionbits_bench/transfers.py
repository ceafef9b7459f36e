"""What crossed the bus between host and device, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

#: Directions in which pages are copied: to the device, from it, both at once.
WAYS = ("in", "out", "both")

#: Of the best bandwidth, what a page has to reach to be large enough.
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
        """The median, in bytes per second; where both ways are busy, of both together."""
        return self.bytes_moved / median(self.seconds)


@dataclass
class TransferStats:
    """What one step of a paged optimizer moved, by its own account.

    Attributes:
        state_bytes: of all state, wherever it is.
        budget: of state on the device; None: what there is room for.
        page_size: the largest that a page may be.
        bytes_in, bytes_out: brought to where the update runs, and taken back.
        pages: brought.
        passing_bytes: of the frames that they pass through.
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
        """Bytes per second of a step that takes so long, both ways together."""
        return None if seconds is None else (self.bytes_in + self.bytes_out) / seconds

    def of_bus(self, seconds: float | None) -> float | None:
        """That bandwidth as a fraction of what the bus gave."""
        ours = self.bandwidth(seconds)
        return None if ours is None or self.bus is None else ours / self.bus


def best(crossings: Sequence[Crossing], way: str) -> float | None:
    """The bandwidth that way of the page size that suits it best; None where it was not measured."""
    return max((crossing.bandwidth for crossing in crossings if crossing.way == way), default=None)


def enough(crossings: Sequence[Crossing]) -> int | None:
    """The smallest page that both ways at once reaches 97 % of the best; None where that was not measured."""
    top = best(crossings, "both")
    sizes = (c.page_size for c in crossings if c.way == "both" and top is not None and c.bandwidth >= ENOUGH * top)
    return min(sizes, default=None)


def memory(count: int) -> str:
    """A page's size, in whole units."""
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"
