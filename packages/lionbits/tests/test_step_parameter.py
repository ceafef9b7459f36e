"""``step_parameter(p, group, i)``: one parameter's update in a hook, as trainers call it; a step's bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lionbits import Lion, Lion8bit, fuse_into_backward
from lionbits.step import single

from .family import Variant, assert_same, gradient, snapshot, train, weights
from .movers import moving

Call = Callable[[Lion, Tensor, dict[str, Any], int], None]

#: As OneTrainer and as sd-scripts call it.
CALLS: dict[str, Call] = {
    "with its place": lambda optimizer, p, group, i: optimizer.step_parameter(p, group, i),
    "without": lambda optimizer, p, group, i: optimizer.step_parameter(p, group),
}


def by_hooks(optimizer: Lion, call: Call) -> None:
    """What trainers do: a hook of each parameter updates it and frees its gradient."""
    for group in optimizer.param_groups:
        for i, param in enumerate(group["params"]):

            def update(p: Tensor, group: dict[str, Any] = group, i: int = i) -> None:
                call(optimizer, p, group, i)
                p.grad = None

            param.register_post_accumulate_grad_hook(update)


def run(optimizer: Lion, params: list[nn.Parameter], steps: range, *, step: bool) -> None:
    """Losses whose gradients are those of :func:`train`, in backward's own order."""
    for at in steps:
        loss = torch.zeros(())
        for position, param in enumerate(params):
            loss = loss + (param.float() * gradient(param, position, at).float()).sum()
        loss.backward()
        if step:
            optimizer.step()
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] *= 0.9


def groups_of(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.1}]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"cautious": "mask", "rounding": "stochastic"},
    {"percentile_clipping": 30, "grad_clip": 0.1},
]


@pytest.mark.parametrize("step", [False, True])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_bits_are_those_of_a_step(variant: Variant, settings: dict[str, Any], call: str, step: bool) -> None:
    """Parameters, momentum, counts: whether or not the loop calls ``step`` as well."""
    if "QLion" in variant.name:
        settings = {} if not settings else {"cautious": True, "grad_clip": 0.1}
    results = []
    for hooked in (False, True):
        params = weights()
        optimizer = variant(groups_of(params), lr=1e-2, **settings)
        if hooked:
            by_hooks(optimizer, CALLS[call])
        run(optimizer, params, range(4), step=step or not hooked)
        results.append([params, optimizer.state_dict()])
    assert_same(*results)


@pytest.mark.parametrize("how", [{"param_rounding": "dithered"}, {"param_rounding": "compensated"}])
def test_bfloat16_parameters(how: dict[str, Any]) -> None:
    """Rounded with the noise that the parameter has in the whole optimizer."""
    results = []
    for hooked in (False, True):
        params = weights(torch.bfloat16)
        optimizer = Lion8bit(groups_of(params), lr=1e-2, min_8bit_size=100, **how)
        if hooked:
            by_hooks(optimizer, CALLS["without"])
        run(optimizer, params, range(3), step=not hooked)
        results.append([params, optimizer.state_dict()])
    assert_same(*results)


@pytest.mark.parametrize(("compute", "budget"), [("device", 0), ("device", 9000), ("device", None), ("host", None)])
def test_state_that_moves(compute: str, budget: int | None) -> None:
    results = []
    for hooked in (False, True):
        params = weights()
        optimizer = Lion(params, lr=1e-2)
        if hooked:
            optimizer = moving(params, 1 << 12, budget, paged_compute=compute, backend="reference", lr=1e-2)
            by_hooks(optimizer, CALLS["with its place"])
        run(optimizer, params, range(3), step=not hooked)
        results.append([params, [optimizer.momentum(param) for param in params], list(optimizer.state_dict()["state"])])
    assert_same(*results)


def test_whole_steps_in_between_and_a_checkpoint() -> None:
    """Ways of stepping may alternate, and state may be loaded between them."""
    plain, mixed = weights(), weights()
    one, other = Lion8bit(plain), Lion8bit(mixed)
    train(one, plain, range(7))
    for step in range(7):
        if step == 3:
            other.load_state_dict(copy.deepcopy(other.state_dict()))
        if step in (2, 5):
            train(other, mixed, range(step, step + 1))
            continue
        for position, param in enumerate(mixed):
            param.grad = gradient(param, position, step)
            other.step_parameter(param, other.param_groups[0], position)
            param.grad = None
    assert_same([plain, one.state_dict()], [mixed, other.state_dict()])


def test_others_are_left_alone_and_gradients_stay() -> None:
    """Only this parameter changes, and only it gets state; what is called without a gradient does nothing."""
    params = weights()
    optimizer = Lion8bit(params)
    for position, param in enumerate(params):
        param.grad = gradient(param, position, 0)
    rest = [param.detach().clone() for param in params[1:]]
    grad = params[0].grad
    optimizer.step_parameter(params[0], optimizer.param_groups[0], 0)
    assert params[0].grad is grad
    assert list(optimizer.state) == [params[0]]
    assert_same([param.detach() for param in params[1:]], rest)
    params[1].grad = None
    optimizer.step_parameter(params[1], optimizer.param_groups[0], 1)
    assert list(optimizer.state) == [params[0]]


def test_nothing_is_prepared_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its first update a parameter's is ready; one that has left the optimizer is let go."""
    params = weights()
    optimizer = Lion8bit(params)
    made = []
    by_hooks(optimizer, CALLS["without"])
    run(optimizer, params, range(1), step=False)

    class Counting(single.StepCache):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            made.append(1)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(single, "StepCache", Counting)
    run(optimizer, params, range(1, 3), step=False)
    assert not made
    new = nn.Parameter(torch.ones(3))
    optimizer.param_groups[0]["params"] = [new]
    new.grad = torch.ones(3)
    optimizer.step_parameter(new, optimizer.param_groups[0])
    assert optimizer._parameter_steps is not None
    assert list(optimizer._parameter_steps) == [new]


def test_what_is_not_accepted() -> None:
    """Named, and nothing has changed."""
    params = weights()
    optimizer = Lion8bit(groups_of(params))
    train(optimizer, params, range(1))
    first, second = optimizer.param_groups
    before = snapshot(optimizer)
    stranger = nn.Parameter(torch.ones(3))
    wrong: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        (("weight", first), TypeError, "p='weight'"),
        ((params[0], None), TypeError, "group=None"),
        ((params[0], dict(first)), ValueError, "itself. load_state_dict makes new ones"),
        ((stranger, first), ValueError, r"p of shape \(3,\) is not in the group"),
        ((params[0], second), ValueError, "Pass the group that holds it"),
        ((params[1], second, 1), ValueError, r"is not group\['params'\]\[1\]"),
        ((params[1], second, 7), ValueError, "i=7"),
        ((params[1], second, "0"), TypeError, "i='0'"),
    ]
    for args, error, message in wrong:
        with pytest.raises(error, match=message):
            optimizer.step_parameter(*args)
    params[0].grad = torch.ones(64, 64).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step_parameter(params[0], first)
    assert_same(snapshot(optimizer), before)
    stale = first
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="load_state_dict makes new ones"):
        optimizer.step_parameter(params[0], stale, 0)


def test_a_refused_first_update_leaves_no_state() -> None:
    params = weights()
    optimizer = Lion8bit(params)
    params[0].grad = torch.ones(64, 64)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr=-1"):
        optimizer.step_parameter(params[0], optimizer.param_groups[0], 0)
    assert not optimizer.state


def test_nonfinite_raises_as_a_step_does() -> None:
    params = weights()
    optimizer = Lion8bit(params, nonfinite="raise")
    params[0].grad = torch.full((64, 64), torch.inf)
    with pytest.raises(FloatingPointError, match="4096 element"):
        optimizer.step_parameter(params[0], optimizer.param_groups[0], 0)
    assert optimizer.skipped_elements() == 4096


def test_copies_make_their_own() -> None:
    """What was kept of the last update is neither copied nor pickled."""
    params = weights()
    optimizer = Lion8bit(params)
    by_hooks(optimizer, CALLS["without"])
    run(optimizer, params, range(1), step=False)
    copied = copy.deepcopy(optimizer)
    assert copied._parameter_steps is None


def test_a_fused_parameter_has_nothing_left() -> None:
    """Together with ``fuse_into_backward`` a parameter is updated once."""
    plain, fused = nn.Linear(64, 64), nn.Linear(64, 64)
    fused.load_state_dict(plain.state_dict())
    one, other = Lion8bit(plain.parameters()), Lion8bit(fused.parameters())
    fuse_into_backward(fused, other)
    by_hooks(other, CALLS["without"])
    for model, optimizer in ((plain, one), (fused, other)):
        model(torch.ones(2, 64)).sum().backward()
        optimizer.step()
    assert_same(one.state_dict(), other.state_dict())
