"""Tensors of any strides, and how many launches they take."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import lionbits
from lionbits.paging.streams import Synchronous
from lionbits_reference.spec import FLOAT32, Format, Plan, Slot
from lionbits_table.layout import walk
from lionbits_triton import backend, kernels

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
    assert walk(plan, *slot(plan, shape, 0, arrange, grad)) is not None
    assert_steps_alike(plan, lambda: [slot(plan, shape, 0, arrange, grad), slot(plan, (3, 32), 1)])


def test_strides_that_no_kernel_walks() -> None:
    """Five dimensions in disorder, state that is not contiguous, gradients that are one number: by way of copies."""
    plan = PLAN

    def make() -> list[tuple[Slot, Tensor]]:
        deep = slot(plan, (2, 3, 4, 5, 6), 0, transposed)
        assert walk(plan, *deep) is None
        plain, own = slot(plan, (8, 64), 1)
        odd_state = replace(plain, state={key: transposed(value) for key, value in plain.state.items()})
        return [deep, (odd_state, own), slot(plan, (4, 40), 2, grad=lambda grad: grad[0, 0].expand(grad.shape))]

    assert_steps_alike(plan, make)


def test_paged_strides_that_no_kernel_walks() -> None:
    """The same where pages hold the state: a page's slots are copied as others are."""
    results = []
    for name in ("triton", "reference"):
        generator = torch.Generator().manual_seed(0)
        param = torch.nn.Parameter(transposed(torch.randn(2, 3, 4, 5, 6, generator=generator)))
        optimizer = lionbits.PagedLion8bit([param], min_8bit_size=1, page_budget=0, backend=name)
        optimizer._pager = replace(optimizer._pager, page_size=64, streams=lambda device: Synchronous())  # type: ignore[call-arg]
        for _ in range(2):
            param.grad = torch.randn(2, 3, 4, 5, 6, generator=generator)
            optimizer.step()
        results.append((param, optimizer.momentum(param)))
    assert all(map(torch.equal, *results))


def test_a_table_goes_with_what_was_prepared() -> None:
    """No cycle keeps device memory until the garbage collector runs."""
    one, grad = slot(PLAN, (4, 32))
    prepared = backend.prepare(PLAN, [one], [grad])
    backend.step(prepared, [grad], HYPER, scalars(1))
    made, state = weakref.ref(prepared.table), weakref.ref(one.state["exp_avg_codes"])
    gc.disable()
    try:
        del prepared, one
        assert made() is None
        assert state() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("count", [3, 300])
@pytest.mark.parametrize("wise", [True, False], ids=["block-wise", "tensor-wise"])
def test_launches_do_not_grow_with_tensors(monkeypatch: pytest.MonkeyPatch, count: int, wise: bool) -> None:
    """One launch updates any number of tensors; one more finds the largest momentum of tensor-wise scales."""
    launches: list[object] = []
    for kernel in (kernels.step_kernel, kernels.count_kernel):
        original = type(kernel).run

        def counted(self: object, *arguments: object, _run: object = original, **options: object) -> object:
            launches.append(self)
            return _run(self, *arguments, **options)  # type: ignore[operator]

    monkeypatch.setattr(type(kernels.step_kernel), "run", counted)
    plan = PLAN if wise else Plan(torch.float32, torch.float32, Format.of(8, block_wise=False))
    slots, grads = zip(*(slot(plan, (2, 32), seed) for seed in range(count)), strict=True)
    numbers, prepared = scalars(count), backend.prepare(plan, slots, grads)
    if not wise:
        numbers = replace(numbers, absmax=backend.absmax(prepared, grads, HYPER, numbers))
    backend.step(prepared, grads, HYPER, numbers)
    assert len(launches) == (1 if wise else 2)
