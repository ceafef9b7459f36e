"""Pages on their way: brought ahead of the update, taken back behind it, so that the update does not wait for either.

While page ``i`` is updated, ``i+1`` and ``i+2`` arrive and ``i-1`` leaves. Marks order what has to be: a frame is
filled when what was in it has left, a page is updated when it has arrived, taken back when it is updated. The host
waits for none of them, unless the update is its own work. That a page is not brought again before it has been taken
back needs no mark: a step ends when all have been.

Where the device updates, pages are state. Where the host does, pages are parameters and gradients, and come the other
way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lionbits.codes import CodeFormats
from lionbits_reference.spec import Batch, Plan, Slot

from .account import PagingStats, shrunk
from .arrangement import Paged, Pager
from .lanes import Lanes, Mark
from .pages import FRAMES, Page, Visit, cut, moving, visit
from .residence import Residence

#: The fewest frames that pages pass through.
FEWEST = 2

#: Bytes below which a page is not worth a copy: if there is no memory for two of these there is none.
SMALLEST = 1 << 16

At = slice | Tensor


@dataclass
class Route:
    """The slots of a batch: those whose state stays, and the pages of all others."""

    near: Batch
    near_at: Tensor
    near_bytes: int
    pages: list[Page]
    at: list[Tensor]  # places of each page's slots, on the device


@dataclass
class Frames:
    """Memory that pages pass through, where the update runs."""

    memory: Tensor
    size: int
    free: list[Mark]
    turn: int = 0  # whose it is

    def __getitem__(self, i: int) -> Tensor:
        return self.memory[i * self.size : (i + 1) * self.size]

    def take(self) -> int:
        """The frame for the next page: each in turn, from one pass to the next."""
        taken, self.turn = self.turn, (self.turn + 1) % len(self.free)
        return taken


class Movement:
    """What an arrangement does, and has done. It is neither copied nor pickled: the arrangement is, which is a value.

    Args:
        pager: where state lives.
    """

    def __init__(self, pager: Pager) -> None:
        self.pager, self.stats = pager, PagingStats()
        self.residence = Residence(pager, self.stats)
        self.formats = CodeFormats()
        self._page_size = pager.page_size if isinstance(pager, Paged) else 0
        self._lanes: dict[torch.device, Lanes] = {}
        self._frames: dict[torch.device, Frames] = {}

    def parts(self, plan: Plan, slots: Batch, *, writes: bool) -> Iterator[tuple[Sequence[Slot], At]]:
        """Runs of slots whose state a kernel can reach, and their places in ``slots``.

        Args:
            plan: of the slots.
            slots: a batch with gradients.
            writes: whether the caller changes the state.

        Raises:
            RuntimeError: a page could not be brought or taken back; says which, and what has been updated.
        """
        device = slots[0].param.device
        if not self.pager.moves(device):
            yield slots, slice(0, len(slots))
            return
        lanes = self._lanes_of(device)
        route, frames = self._ready(plan, slots, device)
        self.stats.steps += writes
        self.stats.hits += route.near_bytes
        self.stats.resident_bytes = route.near_bytes
        if route.near:
            yield route.near, route.near_at
        if frames is not None:
            try:
                yield from self._pass(plan, slots, route, frames, lanes, writes=writes)
            except BaseException:
                lanes.settle()
                raise

    def settle(self) -> None:
        """Wait until the host has all state that lives there: whoever looks at it after a step sees that step.

        It is the one thing that the host waits for, and only where something moved.
        """
        for lanes in self._lanes.values():
            lanes.settle()

    def _pass(
        self, plan: Plan, slots: Batch, route: Route, frames: Frames, lanes: Lanes, *, writes: bool
    ) -> Iterator[tuple[Sequence[Slot], At]]:
        assert isinstance(self.pager, Paged)
        compute, offloads, pages = self.pager.paged_compute, self.pager.offloads, route.pages
        made = lanes.computed() if offloads else None  # gradients are the device's work
        arriving: list[tuple[int, Visit, Mark] | None] = []
        for i, page in enumerate(pages):
            while len(arriving) < min(i + len(frames.free), len(pages)):
                j, frame = len(arriving), frames.take()
                coming = visit(plan, slots, pages[j], frames[frame], compute)
                after = (frames.free[frame], made)
                with _told(f"page {j + 1} of {len(pages)} could not be brought; {i} have been updated"):
                    arriving.append((frame, coming, lanes.bring(coming.bring, after)))
                self.stats.pages_in += 1
                self.stats.bytes_in += pages[j].size
            now = arriving[i]
            assert now is not None
            frame, here, arrived = now
            if offloads:
                lanes.wait(arrived)
            else:
                lanes.compute_after(arrived)
            yield here.slots, route.at[i]
            frames.free[frame] = done = None if offloads else lanes.computed()
            if writes:
                stale = "its parameters are" if offloads else "its momentum is"
                with _told(f"page {i + 1} of {len(pages)} could not be taken back: {stale} of the step before"):
                    frames.free[frame] = lanes.take_back(here.take_back, (done,))
                self.stats.pages_out += 1
                self.stats.bytes_out += here.bytes_back if offloads else page.size
            arriving[i] = None
        if offloads:  # the last page is the last to leave, and the device must not go on with old parameters
            lanes.compute_after(frames.free[frame])

    def _ready(self, plan: Plan, slots: Batch, device: torch.device) -> tuple[Route, Frames | None]:
        """The route of a batch, made anew where the device has less room than was thought, and frames for it."""
        while True:
            route: Route | None = slots.memo.get("paging")
            if route is None:
                route = slots.memo["paging"] = self._route(plan, slots, device)
            largest = max((page.size for page in route.pages), default=0)
            if not largest:
                return route, None
            frames = self._frames.get(device)
            if frames is not None and frames.size >= largest:
                return route, frames
            frames = self._room_for(largest, len(route.pages), device)
            if frames is not None:
                self._frames[device] = frames
                return route, frames
            self._page_size //= 2
            del slots.memo["paging"]

    def _route(self, plan: Plan, slots: Batch, device: torch.device) -> Route:
        self._lanes_of(device).settle()  # pages of before are no more
        keys = moving(plan)
        stays = [self.residence.stay(device, slot.state, keys) for slot in slots]
        near = [place for place, staying in enumerate(stays) if staying]
        far = [place for place, staying in enumerate(stays) if not staying and slots[place].param.numel()]
        assert isinstance(self.pager, Paged)
        there = self.pager.computes_on(device)
        pages = cut(plan, slots, far, self._page_size, self.pager.paged_compute)
        at = [torch.tensor(page.places, device=there) for page in pages]
        size = sum(slots[place].state[key].nbytes for place in near for key in keys)
        batch = Batch(slots[place] for place in near)
        return Route(batch, torch.tensor(near, dtype=torch.int64, device=there), size, pages, at)

    def _room_for(self, size: int, pages: int, device: torch.device) -> Frames | None:
        """Frames of this size; None if smaller ones have to do."""
        self._lanes_of(device).settle()  # nothing may still be on its way to or from frames that go
        self._frames.pop(device, None)
        budget = self.pager.page_budget if isinstance(self.pager, Paged) else None
        most = FRAMES if budget is None else min(max(budget // size, FEWEST), FRAMES)
        for count in range(min(most, max(pages, FEWEST)), FEWEST - 1, -1):
            memory = self._empty(count, size, device)
            if memory is not None:
                self.stats.passing_bytes = count * size
                return Frames(memory, size, [None] * count)
        return None

    def _empty(self, count: int, size: int, device: torch.device) -> Tensor | None:
        try:
            there = self.pager.computes_on(device)
            return empty(count * size, there, pinned=there != device and device.type == "cuda")
        except torch.OutOfMemoryError as error:
            shrunk(self.stats, f"{count} pages of {size:,} bytes", device)
            if count == FEWEST and size // 2 < SMALLEST:
                raise RuntimeError(
                    f"{device} has no memory for {FEWEST} pages of {size:,} bytes of state. Free some: nothing of this "
                    f"step has been done yet."
                ) from error
            return None

    def _lanes_of(self, device: torch.device) -> Lanes:
        found = self._lanes.get(device)
        if found is None:
            found = self._lanes[device] = self.pager.lanes_of(device)
        return found


def empty(size: int, device: torch.device, *, pinned: bool) -> Tensor:
    """So many bytes on the device."""
    return torch.empty(size, dtype=torch.uint8, device=device, pin_memory=pinned)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say what a failed copy means."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"paging: {what}; all other state is as it should be ({error})") from error
