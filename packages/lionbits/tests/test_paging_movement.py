"""Pages that move: cut, joined, brought and taken back, where memory, reads and writes fail too."""

from __future__ import annotations

import gc
import random
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lionbits
from lionbits import Lion, PagedLion
from lionbits.paging import forecast, host, movement
from lionbits.paging.lanes import Lanes, Mark
from lionbits.paging.pages import cut, visit
from lionbits_conformance.adversary import Adversary
from lionbits_reference import encode
from lionbits_reference.spec import FLOAT32, Batch, Format, Plan, Slot

from .family import assert_same, snapshot, train, weights

SHAPES = [(64, 640), (33,), (5000,), (7, 1000), (16, 16), (), (0,), (300, 50)]
PLAN = Plan(torch.float32, torch.float32, Format.of(8))
PLAIN = Plan(torch.float32, torch.float32, FLOAT32)


def moving(
    params: list[nn.Parameter],
    page_size: int,
    budget: int | None,
    lanes: Callable[[torch.device], Lanes] | None = None,
    **settings: Any,
) -> Lion:
    """A paged optimizer whose state moves although its parameters are on the CPU."""
    optimizer = PagedLion(params, page_budget=budget, **settings)
    lanes = lanes or (lambda device: Adversary(page_size))
    optimizer._pager = replace(optimizer._pager, page_size=page_size, lanes=lanes)  # type: ignore[call-arg]
    return optimizer


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


def test_neighbours_travel_together_unless_one_stays_behind() -> None:
    """One copy for each dtype; two where somebody in between has no gradient this time."""
    shapes = [(4, 64)] * 5
    states = host.allocate([PLAN.state_spec(shape) for shape in shapes], 1 << 16, None, pinned=False)
    slots = [
        Slot(torch.zeros(s), torch.zeros(s), state, j) for j, (s, state) in enumerate(zip(shapes, states, strict=True))
    ]
    frame = torch.zeros(1 << 14, dtype=torch.uint8)
    (page,) = cut(PLAN, slots, range(5), 1 << 14)
    assert len(visit(PLAN, slots, page, frame).copies) == 2
    (page,) = cut(PLAN, slots, [0, 1, 3, 4], 1 << 14)
    there = visit(PLAN, slots, page, frame)
    assert len(there.copies) == 4
    for j, state in enumerate(states):
        state["exp_avg_codes"].fill_(j)
    there.bring()
    assert [int(slot.state["exp_avg_codes"].unique()) for slot in there.slots] == [0, 1, 3, 4]


@pytest.mark.parametrize("fails", [1, 2, 5])
def test_a_device_without_room_makes_do_with_less(monkeypatch: pytest.MonkeyPatch, fails: int) -> None:
    """It warns, takes fewer and smaller pages, and the bits are the same."""
    left = [fails]

    def scarce(size: int, device: torch.device) -> torch.Tensor:
        left[0] -= 1
        if left[0] >= 0:
            raise torch.OutOfMemoryError("none left")
        return torch.empty(size, dtype=torch.uint8, device=device)

    monkeypatch.setattr(movement, "empty", scarce)
    monkeypatch.setattr(movement, "SMALLEST", 64)
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

    def none(size: int, device: torch.device) -> torch.Tensor:
        raise torch.OutOfMemoryError("none left")

    params = weights(shapes=SHAPES)
    before = [param.detach().clone() for param in params]
    optimizer = moving(params, 8000, 0)
    with monkeypatch.context() as patch:
        patch.setattr(movement, "empty", none)
        with pytest.raises(RuntimeError, match="no memory for 2 pages"):
            train(optimizer, params, [1])
    assert_same([p.detach() for p in params], before)


class Failing(Adversary):
    """Copies of one direction fail from one on."""

    def __init__(self, device: torch.device, direction: str, at: int) -> None:
        super().__init__(0)
        self.direction, self.left = direction, at

    def _queue(self, lane: int, copy: Callable[[], None], after: Sequence[Any]) -> Any:
        if lane == ("bring", "take back").index(self.direction):
            self.left -= 1
            if self.left < 0:
                raise OSError("the disk is gone")
        return super()._queue(lane, copy, after)


@pytest.mark.parametrize(
    ("direction", "message"), [("bring", "could not be brought"), ("take back", "could not be taken")]
)
def test_a_copy_that_fails_is_told_and_the_rest_is_sound(direction: str, message: str) -> None:
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


class Timed:
    """Lanes that only count time, and write down what they were busy with."""

    def __init__(self, machine: forecast.Machine, sizes: list[int]) -> None:
        self.machine, self.sizes = machine, sizes
        self.now = {"bring": 0.0, "compute": 0.0, "take back": 0.0}
        self.count = dict.fromkeys(self.now, 0)
        self.events: list[forecast.Event] = []

    def work(self, kind: str, speed: float, after: Sequence[Mark]) -> float:
        page = self.count[kind]
        self.count[kind] += 1
        begin = max(self.now[kind], *(mark or 0.0 for mark in after), 0.0)
        self.now[kind] = begin + self.sizes[page] / speed
        self.events.append(forecast.Event(kind, page, begin, self.now[kind]))
        return self.now[kind]

    def bring(self, copy: Callable[[], None], after: Sequence[Mark]) -> Mark:
        copy()
        return self.work("bring", self.machine.bring, after)

    def take_back(self, copy: Callable[[], None], after: Sequence[Mark]) -> Mark:
        copy()
        return self.work("take back", self.machine.take_back, after)

    def computed(self) -> Mark:
        return self.now["compute"]

    def compute_after(self, mark: Mark) -> None:
        self.work("compute", self.machine.compute, [mark])

    def settle(self) -> None:
        pass


@pytest.mark.parametrize("machine", [(50, 50, 900), (50, 40, 60), (10, 60, 30), (60, 10, 500), (55, 55, 20)])
def test_the_engine_keeps_to_the_forecast(machine: tuple[float, float, float]) -> None:
    """Event by event: what waits for what is what the arithmetic says, whichever of the three is slowest."""
    params = weights(shapes=[(rows, 64) for rows in (100, 90, 100, 10, 100, 100, 70)])
    sizes = [param.numel() * 4 for param in params]
    timed = Timed(forecast.Machine(*machine), sizes)
    optimizer = moving(params, 1, 0, lambda device: timed)
    optimizer._pager = replace(optimizer._pager, page_size=100 * 64 * 4, page_budget=3 * 100 * 64 * 4)  # type: ignore[call-arg]
    train(optimizer, params, [1])
    cuts = [
        page.size for page in cut(PLAIN, [Slot(p, p, optimizer.state[p], 0) for p in params], range(7), 100 * 64 * 4)
    ]
    timed.sizes = cuts
    assert len(timed.events) == 3 * len(cuts)
    want = forecast.schedule(cuts, timed.machine, 3)
    if cuts == sizes:
        assert timed.events == want
    assert [(e.kind, e.page) for e in timed.events] == [(e.kind, e.page) for e in want]


def test_staying_pages_are_as_good_as_knowing_the_future() -> None:
    """LRU finds nothing on a cyclic scan; pages that stay find what the optimum finds, but for the place of passage."""
    for pages, room in [(10, 3), (50, 25), (7, 6), (100, 10)]:
        assert forecast.hit_rate("lru", pages, room) == 0
        best, ours = forecast.hit_rate("belady", pages, room), forecast.hit_rate("staying", pages, room)
        assert ours == (room - 1) / pages
        assert ours <= best <= room / pages
    assert forecast.hit_rate("lru", 5, 5) == 1


def test_what_fits_never_moves() -> None:
    """The largest come to stay; the stats say what that saved."""
    params = weights(shapes=[(100, 64), (200, 64), (50, 64), (300, 64)])
    budget = 500 * 64 * 4 + 3 * 4096
    optimizer = moving(params, 4096, budget)
    train(optimizer, params, [1, 2])
    stats = optimizer.paging_stats()
    assert stats.resident_bytes == 500 * 64 * 4
    assert stats.bytes_in == stats.bytes_out == 2 * 150 * 64 * 4
    assert stats.hit_rate == pytest.approx(500 / 650)
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


def test_fifty_optimizers_leave_nothing(tmp_path: Path) -> None:
    """Pages die with their optimizer, in memory and in files."""
    alive: list[Any] = []
    for i in range(50):
        params = weights(shapes=[(64, 640), (5000,)])
        optimizer: Lion = lionbits.PagedLion8bit(params, page_dir=str(tmp_path)) if i % 2 else moving(params, 4096, 0)
        train(optimizer, params, [1])
        alive += [
            weakref.ref(t.untyped_storage())
            for s in optimizer.state.values()
            for t in s.values()
            if isinstance(t, torch.Tensor)
        ]
        del optimizer, params
    gc.collect()
    assert not any(str(tmp_path) in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_a_killed_worker_leaves_no_files(tmp_path: Path) -> None:
    """Files have lost their names as soon as they are made."""
    script = (
        "import torch, lionbits, os, signal\n"
        "p = torch.nn.Parameter(torch.ones(1000, 64)); p.grad = torch.ones_like(p)\n"
        f"o = lionbits.PagedLion8bit([p], page_dir={str(tmp_path)!r}, backend='reference')\n"
        "o.step()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux only")
def test_state_may_be_larger_than_memory(tmp_path: Path) -> None:
    """With a limit on the process's memory that its state does not fit in, files serve, and give the same bits."""
    script = (
        "import resource, sys, torch, lionbits\n"
        "torch.set_num_threads(1)\n"
        "def run(steps, **settings):\n"
        "    torch.manual_seed(0)\n"
        "    p = torch.nn.Parameter(torch.randn(1 << 24)); p.grad = torch.randn(1 << 24)\n"
        "    small = torch.nn.Parameter(torch.ones(64, 64)); small.grad = torch.ones(64, 64)\n"
        "    warm = lionbits.PagedLion([small], backend='reference'); warm.step(); del warm\n"
        "    if settings.pop('limit', False):\n"
        "        data = next(int(l.split()[1]) << 10 for l in open('/proc/self/status') if l.startswith('VmData'))\n"
        "        resource.setrlimit(resource.RLIMIT_DATA, (data + (32 << 20),) * 2)\n"
        "    o = lionbits.PagedLion([p], backend='reference', **settings)\n"
        "    for _ in range(steps): o.step()\n"
        "    return p\n"
        "want = run(2)\n"
        "got = run(2, limit=True, page_dir=sys.argv[1])\n"
        "assert torch.equal(got, want)\n"
        "try:\n"
        "    torch.zeros(1 << 24)\n"
        "except RuntimeError:\n"
        "    print('as the resident run, and 64 MiB more would not fit')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert "would not fit" in done.stdout, done.stderr


def _slot(shape: tuple[int, ...]) -> Slot:
    state = encode(PLAN.format, torch.zeros(shape))
    return Slot(torch.zeros(shape), torch.zeros(shape), state, 0)


def test_a_batch_keeps_its_route() -> None:
    """The cut is made once for a batch."""
    slots = Batch([_slot((64, 640))])
    pager = replace(PagedLion(weights(), page_budget=0)._pager, lanes=lambda device: Adversary(0), page_size=4000)  # type: ignore[call-arg]
    moves = movement.Movement(pager)
    for _ in range(2):
        assert len(list(moves.parts(PLAN, slots, writes=True))) > 5
    kept = slots.memo["paging"]
    list(moves.parts(PLAN, slots, writes=False))
    assert slots.memo["paging"] is kept
