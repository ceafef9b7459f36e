"""What torch.optim promises about one ``step``, for every variant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lionbits import Lion

from .family import Variant, assert_same, free_gradients, gradient, snapshot, train, weights
from .test_contract_state import through_file


def _channels_last() -> tuple[nn.Parameter, Tensor]:
    base = weights(shapes=[(8, 16, 8, 8)])[0].detach().to(memory_format=torch.channels_last)
    return nn.Parameter(base), base


def _transposed() -> tuple[nn.Parameter, Tensor]:
    base = weights(shapes=[(70, 64)])[0].detach()
    return nn.Parameter(base.t()), base


def _every_other_column() -> tuple[nn.Parameter, Tensor]:
    base = weights(shapes=[(64, 140)])[0].detach()
    return nn.Parameter(base[:, ::2]), base


def _slice_of_buffer() -> tuple[nn.Parameter, Tensor]:
    base = weights(shapes=[(10000,)])[0].detach()
    return nn.Parameter(base[100:9060].view(64, 140)), base


LAYOUTS = (_channels_last, _transposed, _every_other_column, _slice_of_buffer)


def test_closure_runs_once_with_gradients_enabled_and_its_value_comes_back(variant: Variant) -> None:
    """``step(closure)`` calls the closure once, under enable_grad, and returns its value."""
    (param,) = weights(shapes=[(64, 64)])
    optimizer, before, enabled = variant([param], lr=0.5), param.detach().clone(), []

    def closure() -> Tensor:
        enabled.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure=closure)
    assert enabled == [True]
    assert torch.equal(loss, before.square().sum())
    assert_same(param.detach(), before - 0.5 * before.sign())


def test_step_without_closure_returns_none(variant: Variant) -> None:
    """``step()`` and ``step(closure=None)`` update and return None."""
    params = weights()
    optimizer = variant(params)
    assert optimizer.step() is None
    assert optimizer.step(closure=None) is None


def test_closure_that_raises_leaves_everything_alone(variant: Variant) -> None:
    """An exception in the closure reaches the caller; parameters, state and step counts stay."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, [1])
    before = snapshot(optimizer)

    def closure() -> Tensor:
        raise KeyError("from the closure")

    with pytest.raises(KeyError, match="from the closure"):
        optimizer.step(closure)
    assert_same(snapshot(optimizer), before)


def test_parameters_without_gradient_are_left_alone(variant: Variant) -> None:
    """Whether they require one or not: no move, no decay, no state; the others are updated."""
    params = weights()
    params[1].requires_grad_(False)
    params[0].grad = gradient(params[0], 0, 1)
    before = [param.detach().clone() for param in params]
    optimizer = variant(params, lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert list(optimizer.state) == [params[0]]
    assert not torch.equal(params[0], before[0])
    assert_same([param.detach() for param in params[1:]], before[1:])


def test_a_gradient_that_is_there_is_used(variant: Variant) -> None:
    """Also of a tensor that requires none, as in torch: Megatron's main parameters and offloaded copies are such.

    From the first step, from one where such a gradient appears, and from the state that ``init_state`` makes before.
    """
    plain, leaf = [param.detach().clone() for param in weights()], weights()
    optimizer, twin = variant(plain, lr=0.1, weight_decay=0.5), variant(leaf, lr=0.1, weight_decay=0.5)
    for step in range(4):
        for position, (one, other) in enumerate(zip(plain, leaf, strict=True)):
            late = position == 1 and step < 2
            one.grad = other.grad = None if late else gradient(other, position, step)
        if not step:
            optimizer.init_state()
            assert list(optimizer.state) == [param for param in plain if param.grad is not None]
        optimizer.step()
        twin.step()
        assert_same(plain, [param.detach() for param in leaf])
    assert_same(optimizer.state_dict(), twin.state_dict())
    assert "nothing to train" not in repr(optimizer)


def test_a_parameter_keeps_its_place_while_others_rest(variant: Variant) -> None:
    """Rounding depends on a parameter's position over all groups, not on which others have gradients in this step."""
    outcomes = []
    for resting in ([], [0], [0, 1]):
        params = weights(torch.bfloat16)
        optimizer = variant([{"params": params[:1]}, {"params": params[1:]}], param_rounding="stochastic", lr=0.01)
        for position, param in enumerate(params):
            param.grad = None if position in resting else gradient(param, position, 1)
        optimizer.step()
        outcomes.append((params[2].detach(), dict(optimizer.state[params[2]])))
    assert_same(outcomes[1], outcomes[0])
    assert_same(outcomes[2], outcomes[0])
    (moved,) = weights(torch.bfloat16)[2:3]
    moved.grad = gradient(moved, 2, 1)
    variant([moved], param_rounding="stochastic", lr=0.01).step()
    assert not torch.equal(moved, outcomes[0][0])  # elsewhere it does round otherwise


def test_step_without_any_gradient_does_nothing(variant: Variant) -> None:
    """Before the first backward pass a step changes no parameter and makes no state."""
    params = weights()
    before = [param.detach().clone() for param in params]
    optimizer = variant(params, weight_decay=0.5)
    optimizer.step()
    assert not optimizer.state
    assert_same([param.detach() for param in params], before)


def test_zero_gradients_move_nothing(variant: Variant) -> None:
    """Gradients of zero from the start: parameters stand still and the momentum is zero, yet the step is counted."""
    params = weights()
    before = [param.detach().clone() for param in params]
    optimizer = variant(params, lr=0.1)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    optimizer.step()
    assert_same([param.detach() for param in params], before)
    assert [optimizer.state[param]["step"] for param in params] == [2] * len(params)
    assert not any(optimizer.momentum(param).any() for param in params)


@pytest.mark.parametrize("maximize", [False, True])
def test_first_step_is_the_rule_with_momentum_zero(variant: Variant, maximize: bool) -> None:
    """From momentum zero, p' = p*(1 - lr*wd) - lr*sign(g), each operation rounded once; maximize goes up."""
    params = weights()
    before = [param.detach().clone() for param in params]
    train(variant(params, lr=0.1, weight_decay=0.3, maximize=maximize), params, [1])
    lr, decay = torch.tensor(0.1), torch.tensor(0.3)
    keep = 1 - lr * decay
    for position, (param, start) in enumerate(zip(params, before, strict=True)):
        sign = gradient(start, position, 1).sign()
        assert_same(param.detach(), start * keep - lr * (-sign if maximize else sign))


def test_maximize_is_minimize_of_the_negative(variant: Variant) -> None:
    """Maximizing gives, bit for bit, what minimizing gives with gradients negated, clipping included."""
    up, down = weights(), weights()
    ascent, descent = variant(up, grad_clip=0.7, maximize=True), variant(down, grad_clip=0.7)
    for step in range(1, 6):
        for position, (one, other) in enumerate(zip(up, down, strict=True)):
            one.grad = gradient(one, position, step)
            other.grad = -gradient(other, position, step)
        ascent.step()
        descent.step()
    assert_same(list(map(torch.detach, up)), list(map(torch.detach, down)))
    assert_same(list(ascent.state.values()), list(descent.state.values()))


@pytest.mark.parametrize("settings", [{}, {"grad_clip": 0.1, "maximize": True}, {"percentile_clipping": 5}])
def test_gradients_are_read_only(variant: Variant, settings: dict[str, float]) -> None:
    """``p.grad`` is the same tensor with the same values after a step, whatever is clipped or negated."""
    params = weights()
    optimizer = variant(params, weight_decay=0.1, **settings)
    train(optimizer, params, [1, 2])
    held = [param.grad for param in params]
    values = [gradient(param, position, 2) for position, param in enumerate(params)]
    assert_same([param.grad for param in params], values)
    optimizer.step()
    assert all(param.grad is grad for param, grad in zip(params, held, strict=True))
    assert_same(held, values)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dense", [False, True], ids=["gradient-as-parameter", "gradient-contiguous"])
def test_strides_and_aliases_are_kept(
    variant: Variant, layout: Callable[[], tuple[nn.Parameter, Tensor]], dense: bool
) -> None:
    """A strided parameter keeps its memory, and ends bit for bit where its contiguous twin does."""
    param, base = layout()
    twin = nn.Parameter(param.detach().clone(memory_format=torch.contiguous_format))
    optimizer, reference = variant([param], weight_decay=0.1), variant([twin], weight_decay=0.1)
    outside = base.clone()
    view = outside.as_strided(param.shape, param.stride(), param.storage_offset())
    where = param.data_ptr(), param.stride(), param.untyped_storage().data_ptr()
    for step in range(1, 4):
        twin.grad = gradient(twin, 0, step)
        param.grad = twin.grad.clone() if dense else torch.empty_like(param).copy_(twin.grad)
        optimizer.step()
        reference.step()
    assert (param.data_ptr(), param.stride(), param.untyped_storage().data_ptr()) == where
    assert_same(param.detach(), twin.detach())
    assert_same(optimizer.momentum(param), reference.momentum(twin))
    view.copy_(twin.detach())  # the base as it should be: the parameter's elements updated, all others as before
    assert_same(base, outside)


def test_empty_and_zero_dimensional_parameters(variant: Variant) -> None:
    """Parameters without elements and scalars take part in steps, checkpoints and ``momentum``."""
    params = weights(shapes=[(0,), (0, 64), (64, 0), (), (1,)])
    optimizer = variant(params, lr=0.25, grad_clip=1.0, percentile_clipping=50)
    start = [param.detach().clone() for param in params]
    train(optimizer, params, [1])
    for position, (param, before) in enumerate(zip(params, start, strict=True)):
        assert_same(param.detach(), before - 0.25 * gradient(param, position, 1).sign())
    assert [optimizer.momentum(param).shape for param in params] == [param.shape for param in params]
    again = variant(params)
    again.load_state_dict(optimizer.state_dict())
    assert_same(snapshot(again)["state"], snapshot(optimizer)["state"])


@pytest.mark.parametrize("param_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradient_dtype_may_differ(variant: Variant, param_dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    """A gradient counts with its value, whatever its dtype: the same as float32 holding that value."""
    mixed, plain = weights(param_dtype), weights(param_dtype)
    if param_dtype != grad_dtype or param_dtype != torch.float32:
        free_gradients(*mixed, *plain)
    left, right = variant(mixed), variant(plain)
    for step in range(1, 4):
        for position, (one, other) in enumerate(zip(mixed, plain, strict=True)):
            one.grad = gradient(one.float(), position, step).to(grad_dtype)
            other.grad = one.grad.float()
        left.step()
        right.step()
    assert mixed[0].grad is not None
    assert mixed[0].grad.dtype == grad_dtype
    assert_same(snapshot(left)["params"], snapshot(right)["params"])
    assert_same(snapshot(left)["state"], snapshot(right)["state"])


def test_an_element_that_is_not_finite_is_skipped_and_counted(variant: Variant) -> None:
    """A NaN in one gradient leaves its element where it was, moves all others, and is counted once per step."""
    params = weights()
    before = params[0].detach().clone()
    optimizer = variant(params, lr=0.1)
    for position, param in enumerate(params):
        param.grad = gradient(param, position, 1)
    assert params[0].grad is not None
    params[0].grad[3, 5] = torch.nan
    optimizer.step()
    assert optimizer.skipped_elements() == 1
    assert [tuple(index) for index in (params[0] == before).nonzero().tolist()] == [(3, 5)]
    optimizer.step()
    assert optimizer.skipped_elements() == 2


def test_numbers_of_numpy_become_pythons() -> None:
    """Settings that came from numpy do not stop a checkpoint from loading with weights_only=True."""
    (param,) = weights(shapes=[(64, 64)])
    optimizer = Lion([param], lr=np.float64(0.5), seed=np.int64(3), betas=(np.float32(0.5), 0.75))
    assert through_file(optimizer.state_dict())["param_groups"][0]["seed"] == 3


#: What users and schedulers write into groups, and what it is in a checkpoint.
WRITTEN: dict[str, tuple[Any, Any]] = {
    "lr": (np.linspace(0.1, 0.2, 3)[1], 0.15000000000000002),
    "weight_decay": (np.float32(0.5), 0.5),
    "betas": ([np.float64(0.5), np.float32(0.75)], [0.5, 0.75]),
    "maximize": (np.bool_(False), False),
    "seed": (np.uint64(2**64 - 1), 2**64 - 1),
    "initial_lr": (np.array(0.25), 0.25),
    "schedule": ({"rates": [np.float16(0.5), (np.int8(3),)]}, {"rates": [0.5, (3,)]}),
    "label": (np.str_("decay"), "decay"),
}


def test_numbers_of_numpy_become_pythons_when_saved(variant: Variant) -> None:
    """Whatever was written into a group since; the group itself stays as it was written."""
    params = weights(shapes=[(64, 64)])
    optimizer = variant(params)
    for key, (written, _) in WRITTEN.items():
        optimizer.param_groups[0][key] = written
    saved = optimizer.state_dict()["param_groups"][0]
    for key, (written, expected) in WRITTEN.items():
        assert_same(saved[key], expected)
        assert optimizer.param_groups[0][key] is written
    loaded = through_file(optimizer.state_dict())
    assert_same(loaded["param_groups"][0], saved)


def test_a_schedule_of_numpy_trains_and_is_saved(variant: Variant) -> None:
    params = weights()
    optimizer = variant(params)
    for step, rate in enumerate(np.linspace(0.1, 0.0, 4)):
        optimizer.param_groups[0]["lr"] = rate
        train(optimizer, params, [step])
        resumed = variant(weights())
        resumed.load_state_dict(through_file(optimizer.state_dict()))
        assert_same(resumed.state_dict(), optimizer.state_dict())
