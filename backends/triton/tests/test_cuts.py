"""However slots are cut into items and tiles, the bits are the reference's: the cuts of a GPU, in the interpreter."""

from __future__ import annotations

import pytest
import torch

from lionbits_reference.spec import FLOAT32, Format, Plan, Slot
from lionbits_triton import backend, launch
from lionbits_triton.launch import Cut
from lionbits_triton.variant import KernelVariant

from .cases import HYPER, assert_steps_alike, scalars, slot

#: Rows that are whole blocks, rows that end in a short one, odd rows, a tail, fewer elements than a block.
SHAPES = [(12, 64), (7, 80), (5, 61), (1000,), (20,), ()]
FORMATS = [Format.of(8, block_size=32), Format.of(4, block_size=32), Format.of(2, block_size=32), FLOAT32]
FORMATS.append(Format.of(8, block_wise=False))


def small(plan: Plan, rows: int, uneven_rows: int, item: int) -> Cut:
    """Tiles of few blocks of 32."""
    return Cut(
        KernelVariant(plan, rows, 32, even=True), KernelVariant(plan, uneven_rows, 32, even=False), item, warps=1
    )


@pytest.mark.slow
@pytest.mark.parametrize("cut", [(2, 1, 2), (4, 2, 8), (2, 2, 6)], ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_tiles_and_items(
    monkeypatch: pytest.MonkeyPatch, format: Format, dtype: torch.dtype, cut: tuple[int, int, int]
) -> None:
    """Several tiles per item and items per slot, on either path, write what the reference writes."""
    plan = Plan(dtype, dtype, format)
    monkeypatch.setattr(backend, "cut", lambda plan, slots: small(plan, *cut))
    assert_steps_alike(plan, lambda: [slot(plan, shape, seed) for seed, shape in enumerate(SHAPES)])


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_both_paths_are_walked(monkeypatch: pytest.MonkeyPatch, format: Format) -> None:
    """The shapes above do have even blocks and others: what the test before this one relies on."""
    plan = Plan(torch.float32, torch.float32, format)
    monkeypatch.setattr(backend, "cut", lambda plan, slots: small(plan, 2, 1, 4))
    slots, grads = zip(*(slot(plan, shape, seed) for seed, shape in enumerate(SHAPES)), strict=True)
    table = backend.prepare(plan, slots, grads).table
    even_blocks = table.slots[:, 6]
    taken = [bool(last <= even_blocks[j]) for j, _, last in table.items.tolist()]
    assert any(taken)
    assert not all(taken)


def test_the_cut_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block size makes tiles of whole blocks, 16 elements for a thread, 8 off the fast path, and whole items."""
    monkeypatch.setattr(launch, "INTERPRETED", type("Compiled", (), {"value": False}))
    for size in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        plan = Plan(torch.bfloat16, torch.bfloat16, Format.of(8, block_size=size))
        for elements, tiles in ((1, 1), (10**6, 1), (10**11, launch.TILES_PER_ITEM)):
            found = launch.cut(plan, [slot(plan, ())[0], _sized(elements)])
            threads = 32 * found.warps
            assert (found.even.block, found.uneven.block) == (size, size)
            assert (found.even.rows * size // threads, found.uneven.rows * size // threads) == (16, 8)
            assert found.item == tiles * found.even.rows


def test_an_empty_call_is_no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots without elements: nothing is launched, and counts are zeros."""
    plan = Plan(torch.float32, torch.float32, FORMATS[0])
    monkeypatch.setattr("lionbits_triton.kernels.step_kernel", None)
    monkeypatch.setattr("lionbits_triton.kernels.count_kernel", None)
    slots, grads = zip(slot(plan, (0, 5)), slot(plan, (4, 0)), strict=True)
    numbers, prepared = scalars(2), backend.prepare(plan, slots, grads)
    backend.step(prepared, grads, HYPER, numbers)
    assert backend.aligned(prepared, grads, HYPER, numbers).tolist() == [0, 0]
    assert backend.absmax(prepared, grads, HYPER, numbers).tolist() == [0.0, 0.0]


def _sized(elements: int) -> Slot:
    """As much of a slot as is looked at to cut it."""
    return Slot(torch.empty(1).expand(elements), {}, 0)
