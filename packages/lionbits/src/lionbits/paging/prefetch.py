"""Prefetching of pages ahead of the update and writing them back behind it: the update waits for neither.

While page ``i`` is updated, ``i+1`` and ``i+2`` arrive and ``i-1`` leaves. Events impose the order: a staging
buffer is filled when its previous page has left, a page is updated when it has arrived, and written back when it is
updated. The host waits for none of them, unless it does the update. No event keeps a page from being prefetched again
before it has been written back: a step ends when all pages have been.

If the device updates, pages hold state. If the host does, pages hold parameters and gradients, and are copied in the
other direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lionbits.state.exported import ExportedCodes
from lionbits.state.formats import CodeFormats
from lionbits_reference.spec import Backend, Plan, Prepared, Slot

from .config import Paged, Pager
from .pages import STAGING_BUFFERS, Page, cut, moving
from .placement import Placement
from .staging import Copies, StagedPage
from .stats import PagingStats, shrunk
from .streams import CopyStreams, Event

#: The fewest buffers that pages pass through.
FEWEST = 2

#: Bytes below which a page is not worth a copy: if there is no memory for two of these there is none.
SMALLEST = 1 << 16


class Call(NamedTuple):
    """One call of a backend: what it prepared, the gradients, and the places of these slots in their launch group."""

    prepared: Prepared
    grads: Sequence[Tensor]
    at: slice | Tensor


@dataclass
class StagingBuffers:
    """Memory for pages where the update runs; page ``i`` uses buffer ``i`` modulo their number.

    Attributes:
        memory: uint8, of all buffers.
        size: bytes of one.
        free: for each buffer, the event after which it may be filled: at first, that the current stream has done all
            work so far, which may use this memory under an earlier name.
    """

    memory: Tensor
    size: int
    free: list[Event]

    def __getitem__(self, i: int) -> Tensor:
        return self.memory[i * self.size : (i + 1) * self.size]


class Prefetcher:
    """Copies pages of state, if any is paged. It is not copied or pickled with the optimizer; its configuration is.

    Args:
        pager: says where state is kept.
    """

    def __init__(self, pager: Pager) -> None:
        self.pager: Pager = pager
        self.stats: PagingStats = PagingStats()
        self.placement: Placement = Placement(pager, self.stats)
        self.formats: CodeFormats = CodeFormats()
        self.exported: ExportedCodes = ExportedCodes()
        self.page_size: int = pager.page_size if isinstance(pager, Paged) else 0
        self._streams: dict[torch.device, CopyStreams] = {}
        self._buffers: dict[torch.device, StagingBuffers] = {}
        self._largest: dict[torch.device, int] = {}

    def prepare(
        self, backend: Backend, plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]
    ) -> ResidentCalls | PagedCalls:
        """Prepare the calls that update some slots, which have state. The result is valid until any of them moves.

        Args:
            backend: that updates them.
            plan, slots: of a launch group.
            grads: of the slots, like those to come.
        """
        device = slots[0].param.device
        if not self.pager.moves(device):
            return ResidentCalls(backend, plan, slots, grads)
        return PagedCalls(self, backend, plan, slots, grads)

    def settle(self) -> None:
        """Wait until the host has all state that is kept there, so that readers after a step see that step.

        Nothing else makes the host wait, and this only if something was copied. Codes that were loaded into a state
        dict are written back.
        """
        self.exported.write_back()
        for streams in self._streams.values():
            streams.settle()

    def streams_of(self, device: torch.device) -> CopyStreams:
        """Return the copy streams of a device, made at the first call."""
        found = self._streams.get(device)
        if found is None:
            assert isinstance(self.pager, Paged)
            found = self._streams[device] = self.pager.streams_of(device)
        return found

    def expect(self, pages: Sequence[Page], device: torch.device) -> None:
        """Note the sizes of these pages, so that staging buffers are made large enough for any of them."""
        self._largest[device] = max(self._largest.get(device, 0), *(page.size for page in pages))

    def buffers_for(self, pages: Sequence[Page], device: torch.device) -> StagingBuffers | None:
        """Return staging buffers that hold any page; without room None, and pages are smaller from now on."""
        largest = self._largest[device]
        found = self._buffers.get(device)
        if found is None or found.size < largest:
            self.streams_of(device).settle()  # nothing may still be on its way to or from buffers that go
            self._buffers.pop(device, None)
            found = self._room_for(largest, len(pages), device)
            if found is None:
                self.page_size //= 2
                del self._largest[device]
            else:
                self._buffers[device] = found
        return found

    def _room_for(self, size: int, pages: int, device: torch.device) -> StagingBuffers | None:
        budget = self.pager.page_budget if isinstance(self.pager, Paged) else None
        most = STAGING_BUFFERS if budget is None else min(max(budget // size, FEWEST), STAGING_BUFFERS)
        for count in range(min(most, max(pages, FEWEST)), FEWEST - 1, -1):
            memory = self._empty(count, size, device)
            if memory is not None:
                self.stats.passing_bytes = count * size
                return StagingBuffers(memory, size, [self.streams_of(device).computed()] * count)
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


class ResidentCalls:
    """The one call that updates slots with resident state."""

    def __init__(self, backend: Backend, plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]) -> None:
        self._prepared, self._all = backend.prepare(plan, slots, grads), slice(0, len(slots))

    def calls(self, grads: Sequence[Tensor], *, writes: bool) -> Iterator[Call]:
        """Yield the one call."""
        del writes
        yield Call(self._prepared, grads, self._all)

    def settle(self) -> None:
        """Do nothing: no copy is pending."""


class PagedCalls:
    """The calls that update slots of which some are paged: one for resident state, one for each page.

    Each is prepared at its first pass and kept for later ones. That keeps the staging buffers alive, but no memory of
    parameters, gradients or state.

    Args:
        prefetcher: that moves pages.
        backend, plan, slots, grads: as in :meth:`Prefetcher.prepare`.
    """

    def __init__(
        self, prefetcher: Prefetcher, backend: Backend, plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]
    ) -> None:
        assert isinstance(prefetcher.pager, Paged)
        self._prefetcher, self._pager = prefetcher, prefetcher.pager
        self._backend, self._plan, self._slots = backend, plan, slots
        self._device = slots[0].param.device
        self._streams = prefetcher.streams_of(self._device)
        self._there = self._pager.computes_on(self._device)
        keys = moving(plan)
        stays = [prefetcher.placement.stay(self._device, slot.state, keys) for slot in slots]
        self._near = [place for place, staying in enumerate(stays) if staying]
        self._far = [place for place, staying in enumerate(stays) if not staying and slots[place].param.numel()]
        self._resident_bytes = sum(slots[place].state[key].nbytes for place in self._near for key in keys)
        self._resident: Prepared = None
        if self._near:
            self._resident = backend.prepare(plan, [slots[j] for j in self._near], [grads[j] for j in self._near])
        self._resident_at = _places(self._near, self._there)
        self._staged: list[StagedPage | None] = []
        self._buffers: StagingBuffers | None = None
        self._cut()

    def calls(self, grads: Sequence[Tensor], *, writes: bool) -> Iterator[Call]:
        """Yield each call of a pass when its tensors are where the update runs.

        Args:
            grads: of all slots.
            writes: whether the caller changes the state.

        Raises:
            RuntimeError: a page could not be prefetched or written back; says which, and what has been updated.
        """
        buffers, stats = self._ready(), self._prefetcher.stats
        stats.steps += writes
        stats.hits += self._resident_bytes
        stats.resident_bytes = self._resident_bytes
        if self._near:
            yield Call(self._resident, [grads[j] for j in self._near], self._resident_at)
        if buffers is not None:
            try:
                yield from self._pass(grads, buffers, stats, writes=writes)
            except BaseException:
                self._streams.settle()
                raise

    def settle(self) -> None:
        """Wait until the host has all state of these slots."""
        self._streams.settle()

    def tensors(self) -> list[Tensor]:
        """Return what is kept where the update runs, but for staging buffers: a pass ends when these are free."""
        return [self._resident_at, *self._at]

    def _ready(self) -> StagingBuffers | None:
        """Return staging buffers for the pages, which are cut anew if the device has less room than expected."""
        while self._far:
            if self._page_size != self._prefetcher.page_size:
                self._cut()
            found = self._prefetcher.buffers_for(self._pages, self._device)
            if found is not None:
                if found is not self._buffers:
                    self._buffers, self._staged = found, [None] * len(self._pages)
                return found
        return None

    def _cut(self) -> None:
        """Cut the slots into pages of the present page size."""
        self._streams.settle()  # pages of before are no more
        self._page_size = self._prefetcher.page_size
        self._buffers = None
        self._pages = cut(self._plan, self._slots, self._far, self._page_size, self._pager.paged_compute)
        self._at = [_places(page.places, self._there) for page in self._pages]
        if self._pages:
            self._prefetcher.expect(self._pages, self._device)

    def _stage(self, i: int, grads: Sequence[Tensor], buffer: Tensor) -> StagedPage:
        """Return page ``i`` staged in its buffer."""
        staged = self._staged[i]
        if staged is None:
            compute = self._pager.paged_compute
            made = StagedPage(self._backend, self._plan, self._slots, self._pages[i], grads, buffer, compute)
            staged = self._staged[i] = made
        return staged

    def _pass(
        self, grads: Sequence[Tensor], buffers: StagingBuffers, stats: PagingStats, *, writes: bool
    ) -> Iterator[Call]:
        offloads, streams, pages = self._pager.offloads, self._streams, self._pages
        made = streams.computed() if offloads else None  # gradients are the device's work
        arriving: list[tuple[StagedPage, Copies, Event] | None] = []
        for i, page in enumerate(pages):
            while len(arriving) < min(i + len(buffers.free), len(pages)):
                j, buffer = len(arriving), len(arriving) % len(buffers.free)
                coming = self._stage(j, grads, buffers[buffer])
                copies, after = coming.copies(grads), (buffers.free[buffer], made)
                with _explained(f"page {j + 1} of {len(pages)} could not be prefetched; {i} have been updated"):
                    arriving.append((coming, copies, streams.prefetch(copies.fill, after)))
                stats.pages_in += 1
                stats.bytes_in += pages[j].size
            now = arriving[i]
            assert now is not None
            staged, copies, arrived = now
            if offloads:
                streams.wait(arrived)
            else:
                streams.compute_after(arrived)
            yield Call(*staged.call(grads), self._at[i])
            buffer = i % len(buffers.free)
            buffers.free[buffer] = done = None if offloads else streams.computed()
            if writes:
                stale = "its parameters are" if offloads else "its momentum is"
                with _explained(f"page {i + 1} of {len(pages)} could not be written back: {stale} of the step before"):
                    buffers.free[buffer] = streams.write_back(copies.empty, (done,))
                stats.pages_out += 1
                stats.bytes_out += copies.bytes_leaving if offloads else page.size
            arriving[i] = None
        if offloads:  # the last page is the last to leave, and the device must not go on with old parameters
            streams.compute_after(buffers.free[(len(pages) - 1) % len(buffers.free)])


def empty(size: int, device: torch.device, *, pinned: bool) -> Tensor:
    """Return ``size`` uninitialised bytes on the device."""
    return torch.empty(size, dtype=torch.uint8, device=device, pin_memory=pinned)


def _places(places: Sequence[int], device: torch.device) -> Tensor:
    """Return places as int64 on the device, without a host sync."""
    host = torch.tensor(places, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Explain a failed copy in its error."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"paging: {what}; all other state is as it should be ({error})") from error
