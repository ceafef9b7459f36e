"""Tensors that kernels cannot walk: copies of them are made anew at each call, and written back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lionbits_reference as reference
from lionbits_reference.spec import Format, Plan, Slot
from lionbits_table import Record, Table

PLAN = Plan(torch.bfloat16, torch.float32, Format.of(8, block_size=32), param_rounding="compensated")
SHAPE = (2, 3, 4, 5, 6)


def scattered(tensor: Tensor) -> Tensor:
    """The same values with the dimensions of a row in an order that is neither the logical nor its reverse."""
    order = [0, 3, 1, 4, 2][: tensor.dim()]
    back = [order.index(i) for i in range(len(order))]
    return tensor.permute(order).contiguous().permute(back)


def slot(seed: int = 0) -> Slot:
    """A compensated parameter that is scattered, with momentum."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(SHAPE, generator=generator)
    residual = torch.randint(-999, 999, SHAPE, generator=generator).to(torch.int16)
    state = {**reference.encode(PLAN.format, value), "param_residual": residual}
    return Slot(scattered(value.to(torch.bfloat16)), state, index=0)


def table(slots: list[Slot], grads: list[Tensor]) -> Table:
    return Table(PLAN, slots, grads, 32, 4)


def grad(value: float) -> Tensor:
    return scattered(torch.full(SHAPE, value))


def test_a_gradient_is_copied_at_every_call() -> None:
    """Another tensor, the same one written anew, and the one before again."""
    held = slot()
    first, second = grad(1.0), grad(2.0)
    made = table([held], [first])
    for bound, value in ((first, 1.0), (second, 2.0), (first, 3.0), (first, 4.0), (second, 2.0)):
        bound.fill_(value)
        made.bind([bound])
        assert torch.equal(made._detours[0].grad, torch.full(SHAPE, value))
        assert made.calls[0].tolist() == [made._detours[0].grad.data_ptr(), 1]
        assert torch.equal(bound, grad(value))


def test_what_kernels_wrote_is_written_back_at_every_call() -> None:
    """Parameter, codes, scales and residual; before each call they are read anew."""
    held = slot()
    made = table([held], [grad(1.0)])
    for number in (1, 2):
        made.bind([grad(1.0)])
        copy = made._detours[0].copy
        for mine, theirs in zip((held.param, *held.state.values()), (copy.param, *copy.state.values()), strict=True):
            assert torch.equal(mine, theirs)
            theirs.fill_(number)
        made.release()
        for tensor in (held.param, *held.state.values()):
            assert torch.equal(tensor, torch.full_like(tensor, number))
            tensor.fill_(7)


def test_a_copy_shares_no_memory() -> None:
    """Kernels may write a copy while the original is read."""
    held = slot()
    copy = table([held], [grad(1.0)])._detours[0].copy
    originals = [held.param, *held.state.values()]
    assert {t.data_ptr() for t in originals}.isdisjoint(t.data_ptr() for t in (copy.param, *copy.state.values()))


def test_a_copy_keeps_the_slots_numbers() -> None:
    """Its index, start and pitch."""
    plain = slot()
    held = Slot(plain.param, plain.state, 5, 64, 1024)
    record = Record(*table([held], [grad(1.0)]).slots[0].tolist())
    assert (record.index, record.start, record.pitch, record.columns) == (5, 64, 1024, 360)


@pytest.mark.parametrize("state", [False, True], ids=["gradient", "state"])
def test_what_lies_in_no_order_or_is_negated_is_copied(state: bool) -> None:
    """Where state is not contiguous, or the sign of a gradient is not in its bytes."""
    plain = torch.zeros(4, 64)
    held = Slot(plain.to(torch.bfloat16), dict(reference.encode(PLAN.format, plain)), index=0)
    held.state["param_residual"] = (
        torch.zeros(64, 4, dtype=torch.int16).t() if state else torch.zeros(4, 64, dtype=torch.int16)
    )
    bound = plain if state else torch._neg_view(plain + 1)
    made = Table(PLAN, [held], [bound], 32, 4)
    made.bind([bound])
    assert list(made._detours) == [0]
    assert torch.equal(made._detours[0].grad, bound)


def test_of_many_gradients_each_is_looked_at() -> None:
    """Whichever of them moves, its address is sent, and whether it is aligned."""
    plan = Plan(torch.float32, torch.float32, Format.of(32))
    slots = [Slot(torch.zeros(4, 32), {"exp_avg": torch.zeros(4, 32)}, index=0) for _ in range(3)]
    grads = [torch.zeros(4, 32) for _ in slots]
    made = Table(plan, slots, grads, 32, 4)
    made.bind(grads)
    for j, offset in ((0, 0), (1, 1), (2, 4), (2, 3), (0, 2)):
        grads[j] = torch.zeros(4 * 32 + 8)[offset : offset + 128].view(4, 32)
        made.bind(grads)
        assert made.calls.tolist() == [[g.data_ptr(), int(g.data_ptr() % 16 == 0)] for g in grads]
