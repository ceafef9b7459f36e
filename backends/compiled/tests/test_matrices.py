"""How slots become matrices: what is copied, what is kept, how much memory that takes."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lionbits
from lionbits_compiled import packing
from lionbits_compiled.bound import BoundSlot
from lionbits_compiled.copies import Copies
from lionbits_compiled.functions import WORD
from lionbits_compiled.layouts import FEW, LARGE, SMALL, Layout, are_rows, is_zero_copy, layout, parts
from lionbits_compiled.matrices import Matrix
from lionbits_compiled.prepared import Prepared
from lionbits_compiled.scratch import Scratch
from lionbits_reference import encode
from lionbits_reference.spec import FLOAT32, Format, Plan, Slot

EIGHT = Plan(torch.float32, torch.float32, Format.of(8))


def slot(shape: tuple[int, ...], plan: Plan = EIGHT) -> BoundSlot:
    """Ones."""
    state = encode(plan.format, torch.zeros(shape))
    for key, spec in plan.state_spec(shape).items():
        state.setdefault(key, torch.zeros(spec.shape, dtype=spec.dtype))
    plain = Slot(torch.ones(shape, dtype=plan.param_dtype), state, 0)
    return BoundSlot(plain, torch.ones(shape, dtype=plan.grad_dtype))


@pytest.mark.parametrize("shape", [(512, 512), (1 << 18,), (256, 16, 4, 4), (3000, 1024), (1000, 64), (100_000, 96)])
def test_whole_blocks_are_matrices_where_they_lie(shape: tuple[int, ...]) -> None:
    """Nothing of them is copied: what the compiled code writes to is the parameter itself."""
    held = slot(shape)
    assert all(is_zero_copy(EIGHT, part) for part in parts(EIGHT, held))
    (matrix, *_) = Prepared(EIGHT, [held]).matrices(drawing=True)
    assert isinstance(matrix, Matrix)
    assert matrix.tensors["param"].data_ptr() == held.param.data_ptr()


@pytest.mark.parametrize("place", ["odd", "beside the parameter"])
def test_a_later_gradient_may_lie_elsewhere(place: str) -> None:
    """What is kept from the first call is not taken for true of a gradient that begins or lies where that did not."""
    held = slot((64, 512))
    prepared = Prepared(EIGHT, [held])
    room = torch.ones(2 * held.param.numel() + 8)
    first = 1 if place == "odd" else 8
    later = room[first : first + held.param.numel()].view(64, 512)
    if place != "odd":
        param = room[-held.param.numel() :].view(64, 512)
        held = BoundSlot(replace(held.slot, param=param), held.grad)
        prepared = Prepared(EIGHT, [held])
    for grad, copied in ((held.grad, False), (later, True), (held.grad, False)):
        held.take(grad)
        (matrix,) = prepared.matrices(drawing=True)
        assert isinstance(matrix, Matrix)
        assert (matrix.tensors["grad"].data_ptr() != grad.data_ptr()) == copied


def test_only_the_tail_of_a_long_vector_is_copied() -> None:
    held = slot((1_000_003,))
    *whole, tail = parts(EIGHT, held)
    assert all(is_zero_copy(EIGHT, part) for part in whole)
    assert tail.param.numel() == 1_000_003 % 256
    assert sum(part.param.numel() for part in (*whole, tail)) == 1_000_003


def test_parts_cover_ragged_rows_in_order() -> None:
    """Rows that are no whole blocks are copied, some at a time."""
    held = slot((700, 1601))
    cut = list(parts(EIGHT, held))
    assert len(cut) > 1
    assert [part.start for part in cut] == [sum(p.param.shape[0] for p in cut[:i]) * 1602 for i in range(len(cut))]
    assert sum(part.param.shape[0] for part in cut) == 700


def test_rows_join_where_nothing_tells_them_apart() -> None:
    """float32 momentum has no blocks, and no noise: rows of 33 are one row. Those below 32 are one by rule."""
    plain = Plan(torch.float32, torch.float32, FLOAT32)
    assert layout(plain, slot((5000, 33), plain)).rows == 1
    drawn = Plan(torch.bfloat16, torch.bfloat16, FLOAT32, param_rounding="dithered")
    assert layout(drawn, slot((5000, 33), drawn)).rows == 5000
    assert layout(drawn, slot((5000, 34), drawn)).rows == 1
    assert layout(drawn, slot((5000, 5), drawn)).rows == 1


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("in_bytes", [True, False])
def test_packed_as_the_reference_packs(bits: int, in_bytes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Element 0 in the lowest bits; by itself a code is a byte or a word."""
    monkeypatch.setattr(packing, "CODES", torch.uint8 if in_bytes else WORD)
    codes = torch.randint(0, 1 << bits, (6, 96), dtype=torch.uint8)
    slots = codes.view(6, -1, 8 // bits)
    want = sum((slots[..., j] << (j * bits)) for j in range(8 // bits))
    assert isinstance(want, torch.Tensor)
    apart = packing.unpack(want, bits, Scratch())
    assert torch.equal(apart if in_bytes else apart.view(torch.int32), codes)
    packed = want if apart is want else torch.empty_like(want)
    packing.pack(apart.clone(), packed, bits, Scratch())
    assert torch.equal(packed, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_of_many_are_those_of_each(dtype: torch.dtype) -> None:
    """Of one shape or of several, dense or not: each comes to lie in its own rows, and goes back as it came."""
    shapes = [(100,)] * 40 + [(3, 40)] * FEW + [(3, 40, 2)] * (FEW - 1) + [(LARGE + 1,)] * FEW + [(), (8,)]
    theirs = [torch.randn(shape).to(dtype) for shape in shapes]
    theirs[5], theirs[45] = torch.randn(200).to(dtype)[::2], torch.randn(40, 3).to(dtype).t()
    layouts = [
        Layout(shape[0], math.prod(shape[1:]), 32) if shape[1:] else Layout(1, math.prod(shape), 32) for shape in shapes
    ]
    matrix = torch.full((sum(found.height for found in layouts), 32), 7.0)
    copies = Copies(matrix, theirs, layouts, Scratch())
    copies.fetch(theirs)
    first = 0
    for tensor, found in zip(theirs, layouts, strict=True):
        rows = matrix[first : first + found.height].view(found.rows, -1)
        assert torch.equal(rows[:, : found.columns], tensor.reshape(found.rows, -1).float())
        assert torch.all(rows[:, found.columns :] == 7)
        first += found.height
    matrix.neg_()
    before = [tensor.clone() for tensor in theirs]
    copies.bring_back(theirs)
    assert all(torch.equal(now, -then) for now, then in zip(theirs, before, strict=True))


def test_what_are_rows_of_a_matrix() -> None:
    """One behind the other, whole, in one memory, and none too few."""
    memory = torch.zeros(8, 24)
    rows = list(memory.view(8, 4, 6).unbind())
    assert are_rows(rows, (8, 24))
    assert are_rows(rows[2:5], (3, 24))
    assert not are_rows(rows, (9, 24))
    assert not are_rows(rows, (8, 20))
    assert not are_rows([*rows[:3], *rows[4:]], (7, 24))
    assert not are_rows([rows[1], rows[0], *rows[2:]], (8, 24))
    assert not are_rows([*rows[:-1], rows[-1].clone()], (8, 24))
    assert not are_rows([*rows[:-1], memory[-1].view(6, 4).t()], (8, 24))
    assert not are_rows([*rows[:-1], rows[-1][:2]], (8, 24))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_momentum_of_a_crowd_is_updated_where_it_lies(dtype: torch.dtype) -> None:
    """And copied where it lies so no more: some have no gradient, one was replaced, another optimizer took it over."""
    shapes = [(4, 25), (100,), (33,)] * FEW + [(64,)] * (FEW - 1) + [()]
    ends, ours = [], {}
    for name in ("compiled", "reference"):
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
        optimizer = lionbits.Lion(params, lr=1e-2, weight_decay=0.1, backend=name)
        for turn in ("first", "second", "few", "all", "replaced", "loaded"):
            for j, param in enumerate(params):
                some = turn != "few" or j % 5
                param.grad = torch.randn(param.shape, generator=generator).to(dtype) if some else None
            if turn == "replaced":
                optimizer.state[params[3]]["exp_avg"] = optimizer.state[params[3]]["exp_avg"].clone()
            if turn == "loaded":
                state = optimizer.state_dict()
                optimizer = lionbits.Lion(params, lr=1e-2, weight_decay=0.1, backend=name)
                optimizer.load_state_dict(state)
            optimizer.step()
            (group,) = optimizer._step_cache._launch_groups  # type: ignore[union-attr]
            if name == "compiled":
                gathered = group.calls._prepared.gathered
                ours[turn] = sum(len(matrix.slots) for matrix in gathered if matrix.crowd)
                assert not any(matrix.crowd and "exp_avg" in matrix.tensors for matrix in gathered)
        ends.append([*params, *(optimizer.state[param]["exp_avg"] for param in params)])
    assert all(torch.equal(got, want) for got, want in zip(*ends, strict=True))
    crowds = 3 * FEW
    assert ours == {
        **dict.fromkeys(("first", "second", "all", "loaded"), crowds),
        "few": 0,
        "replaced": 2 * FEW,
    }


def test_a_column_is_filled_when_its_number_changes() -> None:
    """Or where it was not so high, or the memory is new; a zero may have another sign."""
    scratch = Scratch()
    numbers = (2.0, 2.0, 2.0, 3.0, 0.0, -0.0, float("nan"))
    for height, number in zip((4, 3, 5, 2, 2, 2, 2), numbers, strict=True):
        column = scratch.filled("some", number, height)
        assert column.shape == (height, 1)
        assert torch.equal(column.view(torch.int32), torch.full((height, 1), number).view(torch.int32))
    version = scratch.filled("some", 2.0, 4)._version
    assert scratch.filled("some", 2.0, 4)._version == version
    assert torch.equal(scratch.filled("other", 1.0, 9), torch.ones(9, 1))


@pytest.mark.parametrize("settings", [{"optim_bits": 8}, {"optim_bits": 4}, {"optim_bits": 32}])
def test_what_is_kept_does_not_grow_with_the_model(settings: dict[str, int]) -> None:
    """Scratch has a size of its own, whatever there is of large, ragged and small tensors."""
    shapes = [(1 << 22,), (2000, 1601), *[(100,)] * 300, *[(SMALL // 64, 32)] * 40]
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = lionbits.Lion(params, backend="compiled", **settings)  # type: ignore[arg-type]
    optimizer.step()
    all_prepared = [group.calls._prepared for group in optimizer._step_cache._launch_groups]  # type: ignore[union-attr]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for prepared in all_prepared
        for tensor in (*prepared.scratch._flat.values(), *(t for m in prepared.gathered for t in m.tensors.values()))
    }
    assert sum(storages.values()) < 64 << 20


def test_between_steps_no_gradient_and_no_state_is_held() -> None:
    """What the user lets go of is gone, large or small."""
    params = [torch.nn.Parameter(torch.ones(1 << 17)), torch.nn.Parameter(torch.ones(40, 128))]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = lionbits.Lion8bit(params, backend="compiled")
    optimizer.step()
    refs = [weakref.ref(value) for param in params for value in (param.grad, optimizer.state[param]["exp_avg_codes"])]
    for param in params:
        param.grad = None
        optimizer.state[param]["exp_avg_codes"] = optimizer.state[param]["exp_avg_codes"].clone()
    gc.collect()
    assert [ref() for ref in refs] == [None] * 4


def test_autograd_notices_what_a_step_has_changed() -> None:
    """As after any step of torch's, whether a parameter is changed where it lies or in a crowd."""
    for size in (300, SMALL):
        param = torch.nn.Parameter(torch.ones(size))
        loss = param.square().sum()
        loss.backward(retain_graph=True)
        lionbits.Lion([param], backend="compiled").step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_the_next_process_finds_what_was_compiled(tmp_path: Path) -> None:
    """In torch's own cache, which the environment can put elsewhere."""
    script = (
        "import torch\n"
        "from torch._dynamo.utils import counters\n"
        "from lionbits_compiled.functions import load\n"
        "stored, rest, p = (torch.zeros(4, 8, dtype=d) for d in (torch.bfloat16, torch.int16, torch.float32))\n"
        "load(torch.int16)(stored, rest, p)\n"
        "print(counters['inductor']['fxgraph_cache_hit'])\n"
    )
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    hits = [
        subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=300
        ).stdout.strip()
        for _ in range(2)
    ]
    assert hits == ["0", "1"]
