"""Who lives on the device: what fits there never moves.

Steps visit all state in turn, again and again. Under that, the page that was used longest ago is the next to be needed,
so keeping the most recent ones (LRU) finds nothing but what has just been thrown out. Some pages staying and all others
passing through is as good as knowing the future: docs/paging.md has the curves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

#: Of the memory that a CUDA device has free at the first step, the part that state may take without a budget.
SPARE = 0.8


def choose(sizes: Sequence[int], room: int) -> set[int]:
    """Which of the sizes are to stay, in ``room`` bytes: the largest first, as these are what fills it best."""
    chosen = set()
    for j in sorted(range(len(sizes)), key=lambda j: (-sizes[j], j)):
        if sizes[j] <= room:
            chosen.add(j)
            room -= sizes[j]
    return chosen


def room(budget: int | None, device: torch.device, there: int) -> int:
    """Bytes that are left for state on the device, beside those that are there.

    Without a budget it is what the device can spare at the moment: at the first step, that is what forward and backward
    have left.
    """
    if budget is not None:
        return budget - there
    if device.type != "cuda":
        return 1 << 62
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * SPARE)
