"""The device table: what it says of each slot, when it is uploaded anew, what it keeps alive, what it costs."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import lionbits_reference as reference
from lionbits_reference.spec import Format, Plan, Slot
from lionbits_table import Record, Table, table

PLAN = Plan(torch.float32, torch.float32, Format.of(8, block_size=32))


def slot(shape: Sequence[int]) -> Slot:
    """A slot of zeros."""
    param = torch.zeros(tuple(shape))
    return Slot(param, reference.encode(PLAN.format, param), index=0)


def gradients(slots: list[Slot]) -> list[Tensor]:
    """Zeros for each."""
    return [torch.zeros(each.param.shape) for each in slots]


def tabled(slots: list[Slot], grads: list[Tensor], item: int = 4) -> Table:
    """Their table, in items of four blocks."""
    made = Table(PLAN, slots, grads, PLAN.format.block_size, item)
    made.bind(grads)
    return made


def transposed(tensor: Tensor) -> Tensor:
    """Reversed strides."""
    order = list(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


@pytest.mark.parametrize("length", [31, 32, 48, 1000, 1008])
def test_items_cover_every_block_once(length: int) -> None:
    """Each block of each slot belongs to one item, and no item has even and other blocks."""
    slots = [slot(shape) for shape in [(3, length), (length,), (0, length)]]
    made = tabled(slots, gradients(slots))
    for j, each in enumerate(slots):
        runs = sorted((first, last) for at, first, last in made.items.tolist() if at == j)
        covered = [block for first, last in runs for block in range(first, last)]
        rows = each.param.shape[0] if each.param.dim() == 2 else 1
        assert covered == list(range(rows * -(-length // 32)))
        even = Record(*made.slots[j].tolist()).even_blocks
        assert all(last <= even or first >= even for first, last in runs)


class Uploads:
    """Counts what tables send to the device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        original = table._upload

        def counted(values: Any, to: Tensor) -> Tensor:
            self.count += 1
            return original(values, to)

        monkeypatch.setattr(table, "_upload", counted)


def test_only_what_moved_is_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same gradients upload nothing; new ones, one small array."""
    uploads = Uploads(monkeypatch)
    slots = [slot((4, 32)) for _ in range(3)]
    grads = gradients(slots)
    made = tabled(slots, grads)
    assert uploads.count == 3
    made.bind(grads)
    assert uploads.count == 3
    grads[1] = grads[1].clone()
    made.bind(grads)
    made.bind(grads)
    assert uploads.count == 4
    assert made.calls[:, 0].tolist() == [grad.data_ptr() for grad in grads]


def test_a_captured_table_sends_addresses_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay sends those that were captured, so an eager step in between must not rely on what it sent before."""
    uploads = Uploads(monkeypatch)
    slots = [slot((4, 32)) for _ in range(3)]
    grads = gradients(slots)
    made = tabled(slots, grads)
    with monkeypatch.context() as capturing:
        capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        capturing.setattr(made, "_spare", [torch.empty_like(made.calls)])
        capturing.setattr(made, "_keep_for_stream", lambda: None)
        capturing.setattr(made, "calls", _OnDevice(made.calls))
        made.bind(grads)
        made.bind(grads)  # count, then step: of one capture
    assert len(made._captured) == 1
    for sent in (4, 5):
        made.bind(grads)
        assert uploads.count == sent


class _OnDevice:
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda")

    def __init__(self, tensor: Tensor) -> None:
        self.copy_ = tensor.copy_


def test_no_gradient_is_kept_alive() -> None:
    """Between steps a table holds none, also where kernels work on copies."""
    deep = slot((2, 3, 4, 5, 6))
    slots = [slot((4, 32)), replace(deep, param=transposed(deep.param))]
    grads = gradients(slots)
    made = tabled(slots, grads)
    made.release()
    kept = [weakref.ref(grad) for grad in grads]
    del grads
    assert [ref() for ref in kept] == [None, None]


def test_the_cost_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """For 300 tensors the host looks at addresses of gradients; the figure is printed, the bound is lax."""
    slots = [slot((2, 32)) for _ in range(300)]
    grads = gradients(slots)
    made = tabled(slots, grads)
    times: dict[str, list[float]] = {"the same gradients": [], "new gradients": [], "made anew": []}
    for _ in range(200):
        times["the same gradients"].append(_timed(lambda: made.bind(grads)))
        grads[:] = [grad.clone() for grad in grads]
        times["new gradients"].append(_timed(lambda: made.bind(grads)))
    for _ in range(5):
        times["made anew"].append(_timed(lambda: tabled(slots, grads)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    with capsys.disabled():
        print("\nhost time of the table, 300 tensors:", {k: f"{v * 1e6:.0f} us" for k, v in medians.items()})
    assert medians["new gradients"] < medians["made anew"] / 10


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
