"""Learning rates that change: tensors, and every scheduler that torch has, for every variant."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR

from lionbits import Lion

from .family import Variant, assert_same, gradient, snapshot, train, weights

Factory = Callable[[Any], Any]


def _chained(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 2), lr_scheduler.ExponentialLR(optimizer, 0.75)]
    return lr_scheduler.ChainedScheduler(parts)


def _sequential(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2), lr_scheduler.CosineAnnealingLR(optimizer, 4)]
    return lr_scheduler.SequentialLR(optimizer, parts, [2])


#: Every scheduler of torch, by its name there. The last one is in swa_utils.
SCHEDULERS: dict[str, Factory] = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 1 / (1 + epoch)),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda epoch: 0.5),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 2, 0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [1, 3], 0.5),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.25, 2),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 0.25, total_iters=3),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.75),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 4, 2.0),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 4),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.0, 0.5, 2),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.5, 8),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=0),
    "ChainedScheduler": _chained,
    "SequentialLR": _sequential,
    "SWALR": lambda opt: SWALR(opt, 0.5, 3),
}

STEPS = 6


def _advance(scheduler: Any) -> None:
    # A metric that never improves, for the one scheduler that asks for it.
    scheduler.step(*((1.0,) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else ()))


def test_the_table_has_every_scheduler() -> None:
    """No scheduler of torch is missing from the table."""
    base = lr_scheduler.LRScheduler
    known = {name for name, found in vars(lr_scheduler).items() if isinstance(found, type) and issubclass(found, base)}
    assert known - {"LRScheduler", "_LRScheduler"} <= SCHEDULERS.keys()


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
def test_scheduler_drives_the_learning_rate(variant: Variant, name: str, tensor: bool) -> None:
    """Under a scheduler, training is what it would be with the same learning rates and betas set by hand."""
    # AdamW, which has betas too, follows the same schedule and says what the numbers should be.
    rate, other_rate = (torch.tensor(0.25) if tensor else 0.25 for _ in range(2))
    guide = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=other_rate, betas=(0.9, 0.99), foreach=False)
    params, by_hand_params = weights(shapes=[(64, 64)]), weights(shapes=[(64, 64)])
    optimizer = variant(params, lr=rate)
    by_hand = variant(by_hand_params, lr=0.25)
    held, guide_held = optimizer.param_groups[0]["lr"], guide.param_groups[0]["lr"]
    scheduler, guide_scheduler = SCHEDULERS[name](optimizer), SCHEDULERS[name](guide)
    rates = []
    for step in range(1, STEPS + 1):
        by_hand.param_groups[0]["betas"] = guide.param_groups[0]["betas"]
        by_hand.param_groups[0]["lr"] = float(optimizer.param_groups[0]["lr"])
        train(optimizer, params, [step])
        train(by_hand, by_hand_params, [step])
        assert optimizer.param_groups[0]["lr"] == guide.param_groups[0]["lr"]
        assert optimizer.param_groups[0]["betas"] == guide.param_groups[0]["betas"]
        guide.step()
        _advance(scheduler)
        _advance(guide_scheduler)
        rates.append(float(optimizer.param_groups[0]["lr"]))
    assert len(set(rates)) > 1
    # torch 2.9 puts another tensor there, or a float; later ones write into this one
    assert (optimizer.param_groups[0]["lr"] is held) == (guide.param_groups[0]["lr"] is guide_held)
    assert_same(list(map(torch.detach, params)), list(map(torch.detach, by_hand_params)))
    assert_same(snapshot(optimizer)["state"], snapshot(by_hand)["state"])


@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-d", "1-element"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensor_lr_equals_float_lr(variant: Variant, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A learning rate in a tensor of one element gives the bits that the float gives, and is never written to."""
    one, other = weights(), weights()
    lr = torch.full(shape, 0.1, dtype=dtype)
    with_tensor = variant(one, lr=lr, weight_decay=0.3)
    with_float = variant(other, lr=0.1, weight_decay=0.3)
    train(with_tensor, one, [1, 2, 3])
    train(with_float, other, [1, 2, 3])
    assert_same(list(map(torch.detach, one)), list(map(torch.detach, other)))
    assert_same(snapshot(with_tensor)["state"], snapshot(with_float)["state"])
    assert with_tensor.param_groups[0]["lr"] is lr
    assert torch.equal(lr, torch.full(shape, 0.1, dtype=dtype))


@pytest.mark.parametrize("cautious", ["mask", "c-optim", "timm"])
def test_caution_does_not_write_to_a_tensor_lr(cautious: str) -> None:
    """The rate that a cautious mask raises is a copy, also where the tensor is the kernel's own dtype and shape."""
    (param,) = weights(shapes=[(64, 64)])
    lr = torch.tensor(0.1)
    train(Lion([param], lr=lr, cautious=cautious), [param], [1, 2])
    assert torch.equal(lr, torch.tensor(0.1))


def test_lambda_per_group(variant: Variant) -> None:
    """LambdaLR with a function per group moves each group at its own rate."""
    first, second = weights(shapes=[(64, 64), (33,)])
    start = [first.detach().clone(), second.detach().clone()]
    optimizer = variant([{"params": first}, {"params": second, "lr": 0.5}], lr=0.25)
    functions = [lambda epoch: 2.0**epoch, lambda epoch: 0.5**epoch]
    scheduler = lr_scheduler.LambdaLR(optimizer, functions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch would like a step first; the first step is what we look at
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]
    train(optimizer, [first, second], [1])
    assert_same(first.detach(), start[0] - 0.5 * gradient(first, 0, 1).sign())
    assert_same(second.detach(), start[1] - 0.25 * gradient(second, 1, 1).sign())


@pytest.mark.parametrize("name", ["LinearLR", "CosineAnnealingLR", "PolynomialLR", "OneCycleLR"])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_a_schedule_may_end_at_zero(variant: Variant, name: str, lr: float | torch.Tensor) -> None:
    """Schedules that end at 0 train to their end, though LinearLR gets there as -2e-18, by rounding."""
    params = weights(shapes=[(64, 64)])
    optimizer = variant(params, lr=copy.deepcopy(lr))
    ends: dict[str, Factory] = {
        "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 0.3, end_factor=0.0, total_iters=3),
        "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 3),
        "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 3),
        "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, 4, final_div_factor=1e30),
    }
    scheduler = ends[name](optimizer)
    for step in range(1, 4):
        train(optimizer, params, [step])
        scheduler.step()
    before = params[0].detach().clone()
    train(optimizer, params, [4])
    assert_same(params[0].detach(), before)
    assert optimizer.state[params[0]]["step"] == 4


@pytest.mark.parametrize("name", ["LambdaLR", "CosineAnnealingLR", "OneCycleLR"])
def test_schedule_and_optimizer_resume_together(variant: Variant, name: str) -> None:
    """Saved and loaded together, scheduler and optimizer go on as if they had not been stopped."""
    params = weights()
    optimizer = variant(params, lr=0.25)
    scheduler = SCHEDULERS[name](optimizer)
    for step in (1, 2):
        train(optimizer, params, [step])
        scheduler.step()
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    resumed_params = copy.deepcopy(params)
    resumed = variant(resumed_params, lr=0.25)
    resumed_scheduler = SCHEDULERS[name](resumed)
    resumed.load_state_dict(saved[0])
    resumed_scheduler.load_state_dict(saved[1])
    for step in (3, 4):
        for one, some, clock in ((optimizer, params, scheduler), (resumed, resumed_params, resumed_scheduler)):
            train(one, some, [step])
            clock.step()
    assert_same(resumed.state_dict(), optimizer.state_dict())
    assert_same(list(map(torch.detach, resumed_params)), list(map(torch.detach, params)))


def test_sgd_has_the_same_trap() -> None:
    """LinearLR to zero really passes below it: the fact that the test above relies on."""
    optimizer = SGD(weights(shapes=[(1,)]), lr=0.1)
    scheduler = lr_scheduler.LinearLR(optimizer, 0.3, end_factor=0.0, total_iters=3)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    assert -1e-17 < optimizer.param_groups[0]["lr"] < 0
