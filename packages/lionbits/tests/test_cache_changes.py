"""What is prepared is kept from step to step, and whatever changes between two steps is noticed all the same."""

from __future__ import annotations

import copy
from collections import defaultdict
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from lionbits import Lion, QLion

from .differential import DifferentialRun, Event, replace_tensors, setting, setting_of_one, swap_data, swap_each
from .family import free_gradients, gradient, train, weights


def test_what_was_prepared_comes_again(address_caching: ModuleType) -> None:
    """Each launch group is prepared once."""
    params = weights()
    optimizer = Lion(params, optim_bits=8, backend=address_caching)
    train(optimizer, params, (1, 2, 3))
    prepared = {id(call) for call in address_caching.calls}
    assert len(address_caching.calls) == 3 * len(prepared)


def _moved(optimizer: Lion, params: list[nn.Parameter]) -> None:
    """The list of all parameters stays as it is; one of them gets other settings."""
    first, second = optimizer.param_groups[:2]
    first["params"].append(second["params"].pop(0))


def _replaced_tensor_lives_on(optimizer: Lion, params: list[nn.Parameter]) -> None:
    state = optimizer.state[params[1]]
    optimizer.held = dict(state)  # type: ignore[attr-defined]
    key = next(key for key, value in state.items() if isinstance(value, Tensor) and key.startswith("exp_avg"))
    state[key] = state[key].clone()


def _swapped_states(optimizer: Lion, params: list[nn.Parameter]) -> None:
    state = optimizer.state
    state[params[0]], state[params[1]] = state[params[1]], state[params[0]]


def _given_to_another(optimizer: Lion, params: list[nn.Parameter]) -> None:
    last = next(reversed(optimizer.state))
    optimizer.state[nn.Parameter(torch.zeros(1))] = optimizer.state.pop(last)


EVENTS: dict[str, Event] = {
    "nothing": lambda optimizer, params: None,
    "lr": setting(lr=0.05),
    "lr of a group": setting_of_one(lr=0.05),
    "lr becomes a tensor": setting(lr=torch.tensor(0.05)),
    "weight_decay": setting(weight_decay=0.5),
    "maximize": setting(maximize=True),
    "maximize of a group": setting_of_one(maximize=True),
    "betas": setting(betas=(0.5, 0.6)),
    "betas of a group": setting_of_one(betas=(0.5, 0.6)),
    "seed": setting(seed=99),
    "rounding": setting(rounding="stochastic"),
    "cautious": setting(cautious="gradient"),
    "another cautious mask": setting(cautious="c-optim"),
    "grad_clip": setting(grad_clip=0.1),
    "percentile_clipping": setting(percentile_clipping=3),
    "percentile_clipping off": setting(percentile_clipping=100),
    "nonfinite": setting(nonfinite="propagate"),
    "params reversed in place": lambda optimizer, params: optimizer.param_groups[1]["params"].reverse(),
    "params removed in place": lambda optimizer, params: optimizer.param_groups[1]["params"].pop(),
    "params in another list": lambda optimizer, params: optimizer.param_groups[1].update(params=params[2:0:-1]),
    "a parameter in another group": _moved,
    "groups reversed": lambda optimizer, params: optimizer.param_groups.reverse(),
    "a group is gone": lambda optimizer, params: optimizer.param_groups.pop(),
    "groups in another list": lambda optimizer, params: setattr(
        optimizer, "param_groups", [{**group, "lr": 0.05} for group in optimizer.param_groups]
    ),
    "a group in another dict": lambda optimizer, params: optimizer.param_groups.__setitem__(
        0, dict(optimizer.param_groups[0])
    ),
    "a new group": lambda optimizer, params: optimizer.add_param_group({"params": weights()[:1]}),
    "data swapped": swap_each(torch.clone),
    "data of one swapped": lambda optimizer, params: swap_data(params[1], params[1].data + 1),
    "data transposed in place": lambda optimizer, params: swap_data(params[1], params[1].data.t()),
    "state cleared": lambda optimizer, params: optimizer.state.clear(),
    "state of one cleared": lambda optimizer, params: optimizer.state[params[1]].clear(),
    "state of one gone": lambda optimizer, params: optimizer.state.pop(params[1]),
    "state in another dict": lambda optimizer, params: setattr(
        optimizer, "state", defaultdict(dict, {key: dict(value) for key, value in optimizer.state.items()})
    ),
    "state of one in another dict": lambda optimizer, params: optimizer.state.update(
        {params[1]: dict(optimizer.state[params[1]])}
    ),
    "state swapped": _swapped_states,
    "state given to another": _given_to_another,
    "state tensors replaced": replace_tensors,
    "a state tensor replaced that lives on": _replaced_tensor_lives_on,
    "norms gone": lambda optimizer, params: [state.pop("grad_norms", None) for state in optimizer.state.values()],
    "step set by hand": lambda optimizer, params: optimizer.state[params[1]].update(step=77),
    "loaded": lambda optimizer, params: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
}


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_what_changes_between_steps_is_noticed(pair: DifferentialRun, event: Event) -> None:
    pair.both(event)
    pair.step(2)


def test_betas_that_are_a_list_may_change_in_place(address_caching: ModuleType) -> None:
    pair = DifferentialRun(address_caching, "8", betas=[0.9, 0.99])
    pair.step(2)
    pair.both(lambda optimizer, params: [group["betas"].__setitem__(0, 0.3) for group in optimizer.param_groups])
    pair.step(2)


def test_rates_are_written_when_they_change(address_caching: ModuleType) -> None:
    """A rate that was taken is not taken again."""
    pair = DifferentialRun(address_caching, "8")
    pair.step(2)
    kept = pair.subject._step_cache
    pair.both(setting(lr=0.05))
    pair.step(1)
    assert kept is not None
    assert kept is pair.subject._step_cache
    assert not kept._groups.changed_rates(pair.subject.param_groups)


def test_parameters_come_and_go(pair: DifferentialRun) -> None:
    """Which parameters have gradients changes."""
    for absent in ({1}, {1, 2}, set(), {0, 1, 2, 3}, {0, 3}):
        pair.step(
            2,
            lambda param, position, step, absent=absent: (
                None if position in absent else gradient(param, position, step)
            ),
        )


def test_parameters_freeze_and_thaw(pair: DifferentialRun) -> None:
    """A gradient that a frozen parameter still has is used, as in torch; without one it is left alone."""
    for freezes in (True, False):
        pair.both(lambda optimizer, params, freezes=freezes: params[1].requires_grad_(not freezes))
        pair.update()
        pair.update()


def test_strides_of_a_gradient_change(pair: DifferentialRun) -> None:
    """What was prepared is for gradients with these strides."""
    assert pair.subject._step_cache is not None
    prepared = pair.subject._step_cache._launch_groups[0].calls
    pair.step(
        1,
        lambda param, position, step: (
            gradient(param, position, step).t().contiguous().t()
            if param.dim() == 2
            else gradient(param, position, step)
        ),
    )
    assert pair.subject._step_cache._launch_groups[0].calls is not prepared


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_a_gradient_changes(address_caching: ModuleType, dtype: torch.dtype) -> None:
    pair = DifferentialRun(address_caching, "8")
    pair.step(2)
    pair.both(lambda optimizer, params: free_gradients(*params))
    pair.step(2, lambda param, position, step: gradient(param, position, step).to(dtype))
    pair.step(2)


def test_one_gradient_for_two_parameters(address_caching: ModuleType) -> None:
    pair = DifferentialRun(address_caching, "8")
    pair.step(1)
    for taken in (5, 6):
        for params in pair.params.values():
            params[0].grad = params[1].grad = gradient(params[0], 0, taken)
        pair.update()


def test_qlion_keeps_too(address_caching: ModuleType) -> None:
    params = weights()
    optimizer = QLion(params, use_4bit=True, backend=address_caching)
    train(optimizer, params, (1, 2))
    assert len({id(batch) for batch in address_caching.calls}) * 2 == len(address_caching.calls)
