"""Placement of state: what fits on the device stays there and is never copied.

Steps stage all state in the same order, again and again. So the page that was used longest ago is the next to be
needed, and keeping the most recent ones (LRU) misses every time. To keep some pages and stage all others is as
good as knowing the future: docs/paging.md has the curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lionbits_reference.spec import TensorSpec

from . import colocated, host_memory
from .config import Paged, Pager
from .pages import STAGING_BUFFERS
from .stats import PagingStats, shrunk

#: Share of a CUDA device's free memory at the first step that state may take without a budget.
SPARE = 0.8


#: Device and state of a parameter, and which of its tensors may move.
Held = tuple[torch.device, dict[str, Any], Sequence[str]]


class Placement:
    """Allocates state, and knows what stays on its device.

    Args:
        pager: where state is kept.
        stats: counts the times that a device had no room.
    """

    def __init__(self, pager: Pager, stats: PagingStats) -> None:
        self._pager, self._stats = pager, stats
        self._staying, self._passing = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()

    def allocate(self, wanted: Sequence[tuple[torch.device, Mapping[str, TensorSpec]]]) -> list[dict[str, Tensor]]:
        """Return zeroed state for parameters on these devices: on the device while there is room, else on the host."""
        made: list[dict[str, Tensor]] = [{} for _ in wanted]
        for device in dict.fromkeys(device for device, _ in wanted):
            places = [j for j, (d, _) in enumerate(wanted) if d == device]
            specs = [wanted[j][1] for j in places]
            for j, tensors in zip(places, self._allocate(device, specs), strict=True):
                made[j] = tensors
        return made

    def settle_in(self, held: Sequence[Held]) -> None:
        """Move state that is new here (loaded, say) to its device for good, while there is room."""
        for device in dict.fromkeys(device for device, _, _ in held if self._pager.moves(device)):
            on_host = [(state, keys) for d, state, keys in held if d == device and self._new(device, state, keys)]
            for state, keys in on_host:
                self._passing.update(dict.fromkeys(state[key] for key in keys))
            for j in self._chosen(device, [sum(state[key].nbytes for key in keys) for state, keys in on_host]):
                state, keys = on_host[j]
                try:
                    on_device = {key: state[key].to(device, copy=True) for key in keys}
                except torch.OutOfMemoryError:
                    shrunk(self._stats, "state that was on the host", device)
                    break
                state.update(on_device)
                self._now_stays(on_device)

    def stay(self, device: torch.device, state: Mapping[str, Any], keys: Sequence[str]) -> bool:
        """True if these state tensors of a parameter on ``device`` stay there."""
        return all(self._stays(state[key], device) for key in keys)

    def _new(self, device: torch.device, state: Mapping[str, Any], keys: Sequence[str]) -> bool:
        return not self.stay(device, state, keys) and not all(state[key] in self._passing for key in keys)

    def _stays(self, tensor: Tensor, device: torch.device) -> bool:
        if not self._pager.moves(device):
            return True
        return tensor in self._staying if device.type == "cpu" else tensor.device == device

    def _allocate(self, device: torch.device, wanted: Sequence[Mapping[str, TensorSpec]]) -> list[dict[str, Tensor]]:
        pager = self._pager
        if not isinstance(pager, Paged):
            return colocated.zeros(wanted, device)
        made: dict[int, dict[str, Tensor]] = {}
        if pager.moves(device):
            for j in self._chosen(device, [host_memory.size(specs) for specs in wanted]):
                try:
                    (made[j],) = colocated.zeros([wanted[j]], device)
                except torch.OutOfMemoryError:
                    shrunk(self._stats, f"{host_memory.size(wanted[j]):,} bytes of state", device)
                    break
                self._now_stays(made[j])
        rest = [j for j in range(len(wanted)) if j not in made]
        pages = host_memory.allocate(
            [wanted[j] for j in rest], pager.page_size, pager.page_dir, pinned=device.type == "cuda"
        )
        made |= dict(zip(rest, pages, strict=True))
        self._passing.update(dict.fromkeys(tensor for page in pages for tensor in page.values()))
        return [made[j] for j in range(len(wanted))]

    def _chosen(self, device: torch.device, sizes: Sequence[int]) -> list[int]:
        """Choose which of these sizes may stay on the device, beside what is there."""
        assert isinstance(self._pager, Paged)
        if self._pager.offloads:
            return []
        there = sum(tensor.nbytes for tensor in self._staying if tensor.device == device)
        left = room(self._pager.page_budget, device, there)
        if sum(sizes) > left:
            left -= STAGING_BUFFERS * self._pager.page_size
        return sorted(choose(sizes, left))

    def _now_stays(self, tensors: Mapping[str, Tensor]) -> None:
        self._staying.update(dict.fromkeys(tensors.values()))


def choose(sizes: Sequence[int], room: int) -> set[int]:
    """Choose the sizes that stay in ``room`` bytes: the largest first, as these fill it best."""
    chosen = set()
    for j in sorted(range(len(sizes)), key=lambda j: (-sizes[j], j)):
        if sizes[j] <= room:
            chosen.add(j)
            room -= sizes[j]
    return chosen


def room(budget: int | None, device: torch.device, there: int) -> int:
    """Return the bytes that are left for state on the device, beside the ``there`` bytes already on it.

    Without a budget it is what the device can spare at the moment: at the first step, that is what forward and backward
    have left.
    """
    if budget is not None:
        return budget - there
    if device.type != "cuda":
        return 1 << 62
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * SPARE)
