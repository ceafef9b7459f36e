"""Counts of paging since the optimizer was made."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch


@dataclass
class PagingStats:
    """Counts since the optimizer was made, copied or unpickled.

    Attributes:
        steps: passes over the state in which it was updated.
        bytes_in, bytes_out: prefetched to where the update runs, and written back from there.
        pages_in, pages_out: likewise, in pages.
        hits: bytes that a pass needed and that were there; with ``bytes_in`` they are all it needed.
        resident_bytes: of state that stays on the device, at the last pass.
        passing_bytes: of the buffers on the device that pages pass through.
        shrinks: how often the device had no room for what the budget allows.
    """

    steps: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    pages_in: int = 0
    pages_out: int = 0
    hits: int = 0
    resident_bytes: int = 0
    passing_bytes: int = 0
    shrinks: int = 0

    @property
    def hit_rate(self) -> float:
        """Fraction of the needed bytes that were already there; 1 if nothing was needed."""
        needed = self.hits + self.bytes_in
        return self.hits / needed if needed else 1.0


def shrunk(stats: PagingStats, what: str, device: torch.device) -> None:
    """Count that a device had no room, and warn."""
    stats.shrinks += 1
    warnings.warn(f"{device} has no room for {what}, which the page budget allows: less will do.", stacklevel=6)
