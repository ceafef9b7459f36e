"""The device table: what it says of each slot, when it is made anew, what it keeps alive, what it costs."""

from __future__ import annotations

import gc
import statistics
import time
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from lionbits_reference.spec import FLOAT32, Batch, Format, Plan, Slot
from lionbits_triton import backend, kernels, table
from lionbits_triton.layout import walk
from lionbits_triton.table import Table

from .cases import HYPER, PLAN, Arrange, as_it_is, assert_steps_alike, scalars, slot


def transposed(tensor: Tensor) -> Tensor:
    """Reversed strides."""
    order = list(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def channels_last(tensor: Tensor) -> Tensor:
    """As convolutions like it."""
    return tensor.contiguous(memory_format=torch.channels_last)


def odd(tensor: Tensor) -> Tensor:
    """At an address that no vector fits."""
    return torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape).copy_(tensor)


def wide(tensor: Tensor) -> Tensor:
    """Rows that are parts of longer rows."""
    return torch.empty(*tensor.shape[:-1], tensor.shape[-1] + 16, dtype=tensor.dtype)[..., :-16].copy_(tensor)


@pytest.mark.parametrize("arrange", [as_it_is, transposed, channels_last, odd, wide])
@pytest.mark.parametrize("grad", [as_it_is, transposed, channels_last, odd])
@pytest.mark.parametrize("format", [Format.of(8, block_size=32), Format.of(4, block_size=32), FLOAT32], ids=str)
def test_any_strides(format: Format, arrange: Arrange, grad: Arrange) -> None:
    """Parameters and gradients are walked where they are, whatever strides each has."""
    plan = Plan(torch.float32, torch.float32, format)
    shape = (6, 4, 3, 5)
    assert walk(plan, slot(plan, shape, 0, arrange, grad)) is not None
    assert_steps_alike(plan, lambda: [slot(plan, shape, 0, arrange, grad), slot(plan, (3, 32), 1)])


def test_strides_that_no_kernel_walks() -> None:
    """Five dimensions in disorder, state that is not contiguous, gradients that are one number: by way of copies."""
    plan = PLAN

    def make() -> list[Slot]:
        deep = slot(plan, (2, 3, 4, 5, 6), 0, transposed)
        assert walk(plan, deep) is None
        odd_state = slot(plan, (8, 64), 1)
        odd_state.state = {key: transposed(value) for key, value in odd_state.state.items()}
        return [deep, odd_state, slot(plan, (4, 40), 2, grad=lambda grad: grad[0, 0].expand(grad.shape))]

    assert_steps_alike(plan, make)


@pytest.mark.parametrize("length", [31, 32, 48, 1000, 1008])
def test_items_cover_every_block_once(length: int) -> None:
    """Each block of each slot belongs to one item, and no item has even and other blocks."""
    slots = [slot(PLAN, shape, seed) for seed, shape in enumerate([(3, length), (length,), (0, length)])]
    made = backend._table(PLAN, slots)
    for j, each in enumerate(slots):
        runs = sorted((first, last) for at, first, last in made.items.tolist() if at == j)
        covered = [block for first, last in runs for block in range(first, last)]
        rows = each.param.shape[0] if each.param.dim() == 2 else 1
        assert covered == list(range(rows * -(-length // 32)))
        even = int(made.slots[j, 6])
        assert all(last <= even or first >= even for first, last in runs)


class Uploads:
    """Counts what a table sends to the device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        original = table._upload

        def counted(values: Any, to: Tensor) -> Tensor:
            self.count += 1
            return original(values, to)

        monkeypatch.setattr(table, "_upload", counted)

    def of(self, batch: Batch) -> int:
        """How many a step of the batch takes."""
        before = self.count
        backend.step(PLAN, batch, HYPER, scalars(len(batch)))
        return self.count - before


def test_only_what_moved_is_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that comes again uploads nothing; with new gradients, one small array; another batch, all."""
    uploads = Uploads(monkeypatch)
    batch = Batch(slot(PLAN, (4, 32), seed) for seed in range(3))
    assert uploads.of(batch) == 3
    assert uploads.of(batch) == 0
    batch[1].grad = batch[1].grad.clone()
    assert uploads.of(batch) == 1
    assert uploads.of(batch) == 0
    assert uploads.of(Batch(batch)) == 3


def test_a_captured_table_sends_addresses_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay sends those that were captured, so an eager step in between must not rely on what it sent before."""
    uploads = Uploads(monkeypatch)
    batch = Batch(slot(PLAN, (4, 32), seed) for seed in range(3))
    assert (uploads.of(batch), uploads.of(batch)) == (3, 0)
    made = batch.memo["triton"]
    with monkeypatch.context() as capturing:
        capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        capturing.setattr(torch.Tensor, "pin_memory", lambda host: host)
        capturing.setattr(made, "calls", _OnDevice(made.calls))
        made.bind(batch)
    assert len(made._captured) == 1
    assert (uploads.of(batch), uploads.of(batch)) == (1, 1)


class _OnDevice:
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda")

    def __init__(self, tensor: Tensor) -> None:
        self.copy_ = tensor.copy_


def test_no_gradient_is_kept_alive() -> None:
    """Between steps a batch without gradients holds none, also where the kernels work on copies."""
    batch = Batch([slot(PLAN, (4, 32)), slot(PLAN, (2, 3, 4, 5, 6), 1, transposed)])
    backend.step(PLAN, batch, HYPER, scalars(2))
    kept = [weakref.ref(each.grad) for each in batch]
    for each in batch:
        each.grad = None  # type: ignore[assignment]
    assert [ref() for ref in kept] == [None, None]


def test_a_table_goes_with_its_batch() -> None:
    """No cycle keeps device memory until the garbage collector runs."""
    batch = Batch([slot(PLAN, (4, 32))])
    backend.step(PLAN, batch, HYPER, scalars(1))
    made, state = weakref.ref(batch.memo["triton"]), weakref.ref(batch[0].state["exp_avg_codes"])
    gc.disable()
    try:
        del batch
        assert made() is None
        assert state() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("count", [3, 300])
@pytest.mark.parametrize("wise", [True, False], ids=["block-wise", "tensor-wise"])
def test_launches_do_not_grow_with_tensors(monkeypatch: pytest.MonkeyPatch, count: int, wise: bool) -> None:
    """One launch updates any number of tensors; one more finds the largest momentum of tensor-wise scales."""
    launches = []
    for kernel in (kernels.step_kernel, kernels.count_kernel):
        original = type(kernel).run

        def counted(self: object, *arguments: object, _run: object = original, **options: object) -> object:
            launches.append(self)
            return _run(self, *arguments, **options)  # type: ignore[operator]

    monkeypatch.setattr(type(kernels.step_kernel), "run", counted)
    plan = PLAN if wise else Plan(torch.float32, torch.float32, Format.of(8, block_wise=False))
    batch = Batch(slot(plan, (2, 32), seed) for seed in range(count))
    numbers = scalars(count)
    if not wise:
        numbers = type(numbers)(**{**vars(numbers), "absmax": backend.absmax(plan, batch, HYPER, numbers)})
    backend.step(plan, batch, HYPER, numbers)
    assert len(launches) == (1 if wise else 2)


def test_the_cost_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """For 300 tensors the host looks at addresses of gradients; the figure is printed, the bound is lax."""
    batch = Batch(slot(PLAN, (2, 32), seed) for seed in range(300))
    made = backend._table(PLAN, batch)
    times = {"the same gradients": [], "new gradients": [], "made anew": []}
    for _ in range(200):
        times["the same gradients"].append(_timed(lambda: made.bind(batch)))
        for each in batch:
            each.grad = each.grad.clone()
        times["new gradients"].append(_timed(lambda: made.bind(batch)))
    for _ in range(5):
        times["made anew"].append(_timed(lambda: Table(batch, made.cut)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    with capsys.disabled():
        print("\nhost time of the table, 300 tensors:", {k: f"{v * 1e6:.0f} us" for k, v in medians.items()})
    assert medians["new gradients"] < medians["made anew"] / 10


def _timed(call: object) -> float:
    begin = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - begin
