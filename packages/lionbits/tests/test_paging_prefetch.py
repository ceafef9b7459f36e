"""Pages: cut, joined, prefetched and written back, also when memory, reads and writes fail."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

import lionbits_reference as reference
from lionbits import Lion, PagedLion
from lionbits.paging import host_memory, prefetch
from lionbits.paging.pages import cut
from lionbits.paging.staging import StagedPage
from lionbits_conformance.adversarial_streams import AdversarialStreams
from lionbits_reference import encode
from lionbits_reference.spec import Format, Plan, Slot

from .family import assert_same, snapshot, train, weights
from .movers import moving

SHAPES = [(64, 640), (33,), (5000,), (7, 1000), (16, 16), (), (0,), (300, 50), (411, 7), (90, 1, 5, 5)]
PLAN = Plan(torch.float32, torch.float32, Format.of(8))


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("seed", range(12))
def test_any_budget_any_page_any_order(bits: int, seed: int) -> None:
    """Bit for bit what resident state gives; parameters in any order, a budget of nothing to one of all."""
    chance = random.Random(seed)
    shapes = chance.sample(SHAPES, len(SHAPES))
    page_size, budget = chance.choice([1, 300, 4000, 60_000]), chance.choice([0, 1000, 20_000, 100_000, None])
    settings = chance.choice([{}, {"cautious": "mask"}, {"block_wise": False}, {"percentile_clipping": 30}])
    results = []
    for paged in (False, True):
        params = weights(shapes=shapes)
        if paged:
            optimizer = moving(params, page_size, budget, optim_bits=bits, min_8bit_size=100, **settings)
        else:
            optimizer = Lion(params, optim_bits=bits, min_8bit_size=100, **settings)
        train(optimizer, params, [1, 2, 3])
        results.append(snapshot(optimizer))
    assert_same(*results)
    stats = optimizer.paging_stats()
    assert (stats.bytes_in > 0) == (budget is not None and stats.hit_rate < 1)
    assert stats.bytes_out <= stats.bytes_in


def test_a_large_tensor_has_many_pages_and_many_small_ones_have_one() -> None:
    """Cut between rows, or between blocks of one row; in order, and no larger than asked for."""
    slots = [_slot(shape) for shape in [(64, 1024), (1 << 16,), *[(8, 32)] * 20]]
    pages = cut(PLAN, slots, range(len(slots)), 10_000)
    assert all(page.size <= 10_000 for page in pages)
    pieces = [piece for page in pages for piece in page.pieces]
    assert sum(piece.last - piece.first for piece in pieces if piece.place == 0) == 64
    columns = [piece for piece in pieces if piece.place == 1]
    assert len(columns) > 5
    assert all(piece.first % 256 == 0 for piece in columns)
    assert columns[-1].last == 1 << 16
    assert any(len(page.pieces) > 10 for page in pages)


@pytest.mark.parametrize("shape", [(4096, 8), (3000, 7), (1500, 1, 5, 5)])
def test_short_rows_are_cut_between_blocks(shape: tuple[int, ...]) -> None:
    """A parameter that is one row travels in whole blocks of it, wherever its first dimension has its edges."""
    pages = cut(PLAN, [_slot(shape)], [0], 4000)
    pieces = [piece for page in pages for piece in page.pieces]
    assert len(pieces) > 5
    assert all(page.size <= 4000 for page in pages)
    assert {piece.axis for piece in pieces} == {"columns"}
    assert all(piece.first % 256 == 0 for piece in pieces)
    assert [piece.first for piece in pieces[1:]] == [piece.last for piece in pieces[:-1]]
    assert pieces[-1].last == torch.Size(shape).numel()


def test_neighbours_travel_together_unless_one_stays_behind() -> None:
    """One copy for each dtype; two where somebody in between has no gradient this time."""
    shapes = [(4, 64)] * 5
    states = host_memory.allocate([PLAN.state_spec(shape) for shape in shapes], 1 << 16, None, pinned=False)
    slots = [Slot(torch.zeros(s), state, j) for j, (s, state) in enumerate(zip(shapes, states, strict=True))]
    grads = [torch.zeros(s) for s in shapes]
    buffer = torch.zeros(1 << 14, dtype=torch.uint8)
    (page,) = cut(PLAN, slots, range(5), 1 << 14)
    assert len(StagedPage(reference, PLAN, slots, page, grads, buffer, "device").copies(grads).arriving) == 2
    (page,) = cut(PLAN, slots, [0, 1, 3, 4], 1 << 14)
    there = StagedPage(reference, PLAN, slots, page, grads, buffer, "device")
    copies = there.copies(grads)
    assert len(copies.arriving) == 4
    for j, state in enumerate(states):
        state["exp_avg_codes"].fill_(j)
    copies.fill()
    assert [int(slot.state["exp_avg_codes"].unique()) for slot in there.slots] == [0, 1, 3, 4]


@pytest.mark.parametrize("fails", [1, 2, 5])
def test_a_device_without_room_makes_do_with_less(monkeypatch: pytest.MonkeyPatch, fails: int) -> None:
    """It warns, takes fewer and smaller pages, and the bits are the same."""
    left = [fails]

    def scarce(size: int, device: torch.device, *, pinned: bool) -> torch.Tensor:
        left[0] -= 1
        if left[0] >= 0:
            raise torch.OutOfMemoryError("none left")
        return torch.empty(size, dtype=torch.uint8, device=device)

    monkeypatch.setattr(prefetch, "empty", scarce)
    monkeypatch.setattr(prefetch, "SMALLEST", 64)
    results = []
    for paged in (False, True):
        params = weights(shapes=SHAPES)
        optimizer = moving(params, 8000, 0) if paged else Lion(params)
        if paged:
            with pytest.warns(UserWarning, match="no room"):
                train(optimizer, params, [1])
            assert optimizer.paging_stats().shrinks == fails
        train(optimizer, params, [2] if paged else [1, 2])
        results.append(snapshot(optimizer))
    assert_same(*results)


@pytest.mark.filterwarnings("ignore:.*no room:UserWarning")
def test_a_device_without_any_room_says_so_and_nothing_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameters are as they were, and when there is room again the step is taken."""

    def none(size: int, device: torch.device, *, pinned: bool) -> torch.Tensor:
        raise torch.OutOfMemoryError("none left")

    params = weights(shapes=SHAPES)
    before = [param.detach().clone() for param in params]
    optimizer = moving(params, 8000, 0)
    with monkeypatch.context() as patch:
        patch.setattr(prefetch, "empty", none)
        with pytest.raises(RuntimeError, match="no memory for 2 pages"):
            train(optimizer, params, [1])
    assert_same([p.detach() for p in params], before)


class Failing(AdversarialStreams):
    """Copies of one direction fail from one on."""

    def __init__(self, device: torch.device, direction: str, at: int) -> None:
        super().__init__(0)
        self.direction, self.left = direction, at

    def _queue(self, stream: int, copy: Callable[[], None], after: Sequence[Any]) -> Any:
        if stream == ("prefetch", "write back").index(self.direction):
            self.left -= 1
            if self.left < 0:
                raise OSError("the disk is gone")
        return super()._queue(stream, copy, after)


@pytest.mark.parametrize(
    ("direction", "message"), [("prefetch", "could not be prefetched"), ("write back", "could not be written back")]
)
def test_a_copy_that_fails_is_reported_and_the_rest_is_sound(direction: str, message: str) -> None:
    """Pages before it are updated, those behind it are untouched, and every number in the state is of one step."""
    twin_params = weights(shapes=[(100, 64)] * 6)
    twin = Lion(twin_params)
    train(twin, twin_params, [1])
    params = weights(shapes=[(100, 64)] * 6)
    optimizer = moving(params, 100 * 64 * 4, 0, partial(Failing, direction=direction, at=4))
    before = [param.detach().clone() for param in params]
    with pytest.raises(RuntimeError, match=message):
        train(optimizer, params, [1])
    optimizer.state_dict()
    for param, old, other in zip(params, before, twin_params, strict=True):
        momentum = optimizer.state[param]["exp_avg"]
        moved = not torch.equal(param, old)
        assert torch.equal(param, other if moved else old)
        assert torch.equal(momentum, twin.state[other]["exp_avg"]) or not momentum.any()
    assert 2 <= sum(not torch.equal(p, old) for p, old in zip(params, before, strict=True)) < 6


def test_what_fits_never_moves() -> None:
    """The largest come to stay; the stats say what that saved."""
    params = weights(shapes=[(100, 64), (200, 64), (50, 64), (300, 64)])
    budget = 500 * 64 * 4 + 3 * 4096
    optimizer = moving(params, 4096, budget)
    train(optimizer, params, [1, 2])
    stats = optimizer.paging_stats()
    assert stats.resident_bytes == 500 * 64 * 4
    assert stats.bytes_in == stats.bytes_out == 2 * 150 * 64 * 4
    assert stats.hit_rate == 500 / 650
    assert stats.passing_bytes <= 3 * 4096


def test_loaded_state_settles_in_again() -> None:
    """It comes to the host, where it is beside nothing, and moves in at the next step."""
    params = weights(shapes=[(100, 64), (200, 64)])
    optimizer = moving(params, 4096, 200 * 64 * 4 + 3 * 4096)
    train(optimizer, params, [1])
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.paging_stats().resident_bytes == 200 * 64 * 4
    train(optimizer, params, [2])
    stats = optimizer.paging_stats()
    assert stats.hits == 2 * 200 * 64 * 4


def _slot(shape: tuple[int, ...]) -> Slot:
    state = encode(PLAN.format, torch.zeros(shape))
    return Slot(torch.zeros(shape), state, 0)


def test_pages_are_prepared_once() -> None:
    """The cut, the staged pages and what backends make of them are kept from pass to pass."""
    slots, grads = [_slot((64, 640))], [torch.zeros(64, 640)]
    pager = PagedLion(weights(), page_budget=0)._pager
    pager = replace(pager, streams=lambda device: AdversarialStreams(0), page_size=4000)  # type: ignore[call-arg]
    calls = prefetch.Prefetcher(pager).prepare(reference, PLAN, slots, grads)
    first = [call.prepared for call in calls.calls(grads, writes=True)]
    assert len(first) > 5
    for writes in (True, False):
        again = [call.prepared for call in calls.calls([torch.ones(64, 640)], writes=writes)]
        assert all(one is other for one, other in zip(first, again, strict=True))


def test_what_is_prepared_keeps_no_storage_alive() -> None:
    """Neither gradients, nor the storage of a parameter that was moved away, nor state that was replaced."""
    params = weights(shapes=[(64, 640), (300,), (40, 64)])
    optimizer = moving(params, 4000, 0, optim_bits=8, min_8bit_size=100)
    train(optimizer, params, [1, 2])
    assert optimizer._step_cache is not None
    refs = [weakref.ref(param.grad) for param in params]
    refs += [weakref.ref(state["exp_avg_codes"]) for state in optimizer.state.values()]
    refs += [weakref.ref(param.data.untyped_storage()) for param in params]
    for param in params:
        param.grad = None
        param.data = param.data.clone()
        optimizer.state[param]["exp_avg_codes"] = optimizer.state[param]["exp_avg_codes"].clone()
    gc.collect()
    assert not [ref for ref in refs if ref() is not None]
    train(optimizer, params, [3])
