"""What the check of a rule finds: in right optimizers nothing, in each of these wrong ones that it is wrong."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from lionbits_bench import candidates, rule
from lionbits_bench.eager import EagerLion, update
from lionbits_bench.rule import B1, B2, COMMON

CPU = torch.device("cpu")
Update = Callable[[Tensor, Tensor, Tensor, float, float], None]


def lion(change: Update) -> rule.Build:
    """An eager Lion with another update."""

    def build(parameters: list[Tensor]) -> Optimizer:
        made = EagerLion(parameters, **COMMON)
        made._update = change
        return made

    return build


def momentum_first(p: Tensor, g: Tensor, m: Tensor, lr: float, decay: float) -> None:
    m.mul_(B2).add_(g, alpha=1 - B2)
    p.mul_(1 - lr * decay).add_(m.mul(B1).add_(g, alpha=1 - B1).sign_(), alpha=-lr)


def without_momentum(p: Tensor, g: Tensor, m: Tensor, lr: float, decay: float) -> None:
    p.mul_(1 - lr * decay).add_(g.sign(), alpha=-lr)


def without_decay(p: Tensor, g: Tensor, m: Tensor, lr: float, decay: float) -> None:
    update(p, g, m, lr, 0.0)


def coupled(p: Tensor, g: Tensor, m: Tensor, lr: float, decay: float) -> None:
    update(p, g + decay * p, m, lr, 0.0)


def slower(p: Tensor, g: Tensor, m: Tensor, lr: float, decay: float) -> None:
    p.mul_(1 - lr * decay).add_(m.mul(B1).add_(g, alpha=1 - B1).sign_(), alpha=-lr)
    m.mul_(0.999).add_(g, alpha=0.001)


def decay_alone(p: Tensor, g: Tensor, m: Tensor, lr: float, decay: float) -> None:
    p.mul_(1 - lr * decay)


def all_but_the_tail(p: Tensor, g: Tensor, m: Tensor, lr: float, decay: float) -> None:
    flat = [t.view(-1) for t in (p, g, m)]
    update(*(t[-t.numel() // 50 :] for t in flat), lr, decay)


def test_the_rule_itself_is_right() -> None:
    assert rule.result(rule.lion, lion(update), CPU) == "right"


def test_momentum_first_and_others_are_reported() -> None:
    for change in (momentum_first, without_momentum, without_decay, coupled, slower):
        assert rule.result(rule.lion, lion(change), CPU).endswith("% of updates wrong"), change


@pytest.mark.parametrize("check", [rule.lion, rule.adamw, partial(rule.lion, allowed=0.1)])
def test_weights_that_stay_are_reported(check: rule.Check) -> None:
    def nothing(p: Tensor, *_: Any) -> None:
        pass

    assert rule.result(check, lion(decay_alone), CPU) == "weights unchanged"
    assert rule.result(check, lion(nothing), CPU) == "weights unchanged"
    assert rule.result(check, lion(all_but_the_tail), CPU) == "98.0 % of weights unchanged"


def test_rounded_state_may_turn_a_few_signs_and_no_more() -> None:
    def rounded(p: Tensor, g: Tensor, m: Tensor, lr: float, decay: float) -> None:
        update(p, g, m, lr, decay)
        m.copy_((m / 1e-3).round() * 1e-3)

    found = rule.result(partial(rule.lion, allowed=0.1), lion(rounded), CPU)
    assert found.startswith("right, ")
    assert found.endswith("% of signs turned by rounded state")
    assert rule.result(rule.lion, lion(rounded), CPU).endswith("% of updates wrong")


def test_no_bound_lets_a_wrong_rule_pass() -> None:
    loosest = partial(rule.lion, allowed=max(candidates.ALLOWED.values()))
    for change in (without_momentum, without_decay, coupled):
        assert rule.result(loosest, lion(change), CPU).endswith("% of updates wrong"), change


def test_adamw_and_a_tenth_of_its_step() -> None:
    def adamw(scale: float) -> rule.Build:
        return lambda ps: torch.optim.AdamW(ps, lr=scale * COMMON["lr"], weight_decay=COMMON["weight_decay"] / scale)

    assert rule.result(rule.adamw, adamw(1.0), CPU) == "right"
    assert rule.result(rule.adamw, adamw(0.8), CPU) == "100 % of updates wrong"
    assert rule.result(rule.adamw, adamw(0.1), CPU) == "weights unchanged"


def test_gradients_that_a_step_overwrites_are_no_excuse() -> None:
    def scratch(p: Tensor, g: Tensor, m: Tensor, lr: float, decay: float) -> None:
        update(p, g, m, lr, decay)
        g.zero_()

    assert rule.result(rule.lion, lion(scratch), CPU) == "right"


def test_one_that_raises_is_reported() -> None:
    def fall(*_: Any) -> None:
        raise RuntimeError("fell over\nand so on")

    assert rule.result(rule.lion, lion(fall), CPU) == "cannot be checked: RuntimeError: fell over"
    assert rule.result(None, lion(update), CPU).startswith("not checked")


@pytest.mark.parametrize("lion", candidates.lions(["reference"], "fp32"), ids=lambda lion: lion.variant)
def test_the_reference_is_right(lion: candidates.Candidate) -> None:
    expected = "not checked" if "cautious" in lion.variant else "right"
    assert rule.result(lion.check, lion.build, CPU).startswith(expected)
