"""What becomes of state when parameters or settings change under it: used right, joined, or refused by name."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion, Lion4bit, Lion8bit, PagedLion8bit, float32_parameters

from .family import Variant, assert_same, gradient, snapshot, train, weights
from .movers import moving

Event = Callable[[Lion], Lion]


def _loaded(optimizer: Lion) -> Lion:
    target = type(optimizer)([copy.deepcopy(param) for param in optimizer.param_groups[0]["params"]])
    target.load_state_dict(optimizer.state_dict())
    return target


#: What may lie between the codes and the edit that makes them something else.
BEFORE: dict[str, Event] = {
    "a step": lambda optimizer: optimizer,
    "a copy": copy.deepcopy,
    "loading": _loaded,
    "a pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
}

#: Everything that reads codes, or says what they are.
READERS: dict[str, Callable[[Lion], Any]] = {
    "step": lambda optimizer: optimizer.step(),
    "momentum": lambda optimizer: optimizer.momentum(optimizer.param_groups[0]["params"][0]),
    "state_dict": lambda optimizer: optimizer.state_dict(),
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
}


@pytest.mark.parametrize("cls", [Lion8bit, Lion4bit, PagedLion8bit])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("before", BEFORE)
def test_codes_are_not_read_in_another_format(cls: type[Lion], reader: str, before: str) -> None:
    """A group's ``state_format`` that was edited to one of the same width is refused, until it is set back."""
    params = weights()
    optimizer = cls(params)
    train(optimizer, params, [1])
    optimizer = BEFORE[before](optimizer)
    group = optimizer.param_groups[0]
    for param in group["params"]:
        param.grad = torch.ones_like(param)
    kept, group["state_format"] = group["state_format"], "e2m1" if cls is Lion4bit else "e4m3"
    held = snapshot(optimizer)
    with pytest.raises(ValueError, match=rf"state_format='{group['state_format']}'.*codes in {kept}"):
        READERS[reader](optimizer)
    assert_same(snapshot(optimizer), held)
    group["state_format"] = kept
    READERS[reader](optimizer)


def test_codes_that_move_to_a_group_of_another_format_are_not_read_there() -> None:
    params = weights(shapes=[(64, 64)] * 2)
    optimizer = Lion8bit([{"params": params[:1]}, {"params": params[1:], "state_format": "e4m3"}])
    train(optimizer, params, [1])
    optimizer.param_groups[1]["params"].append(optimizer.param_groups[0]["params"].pop())
    with pytest.raises(ValueError, match=r"state_format='e4m3'.*codes in e3m4"):
        train(optimizer, params, [2])


def test_another_format_is_free_where_there_are_no_codes_yet() -> None:
    """Before the first step, and after the state was cleared."""
    params = weights(shapes=[(64, 64)])
    optimizer = Lion8bit(params)
    optimizer.param_groups[0]["state_format"] = "e4m3"
    train(optimizer, params, [1])
    optimizer.state.clear()
    optimizer.param_groups[0]["state_format"] = "e2m5"
    train(optimizer, params, [2])
    twins = weights(shapes=[(64, 64)])
    twin = Lion8bit(twins, state_format="e2m5")
    train(twin, twins, [2])
    assert_same(optimizer.momentum(params[0]), twin.momentum(twins[0]))


SHAPES = [(64, 64), (70, 61), (33,), (), (0, 40)]
MASTERS: dict[str, dict[str, Any]] = {
    "32": {"param_rounding": "compensated"},
    "24": {"param_rounding": "compensated", "master_bits": 24},
}


def compensated(variant: Variant, **more: Any) -> tuple[nn.ParameterList, Lion]:
    """A model of bfloat16 parameters, and its optimizer."""
    model = nn.ParameterList(weights(torch.bfloat16, SHAPES))
    return model, variant(model.parameters(), lr=1e-3, weight_decay=0.1, **more)


def run(model: nn.Module, optimizer: Lion, steps: list[int]) -> None:
    """Steps whose gradients are the same bits in bfloat16 and in float32."""
    for step in steps:
        for position, param in enumerate(model.parameters()):
            param.grad = gradient(param, position, step).bfloat16().to(param.dtype)
        optimizer.step()


def whole(model: nn.Module) -> list[torch.Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def test_a_compensated_run_in_float32_goes_on_as_a_float32_run(variant: Variant) -> None:
    """``model.float()`` in the middle: the rest is joined to the weights at the next step, exactly."""
    model, optimizer = compensated(variant, param_rounding="compensated")
    reference = nn.ParameterList([nn.Parameter(param.detach().float()) for param in model.parameters()])
    other = variant(reference.parameters(), lr=1e-3, weight_decay=0.1)
    run(model, optimizer, [1, 2, 3])
    run(reference, other, [1, 2, 3])
    model.float()
    assert not all(torch.equal(*pair) for pair in zip(model.parameters(), reference.parameters(), strict=True))
    run(model, optimizer, [4, 5])
    run(reference, other, [4, 5])
    assert_same(whole(model), whole(reference))
    assert not any("param_residual" in state for state in optimizer.state.values())


@pytest.mark.parametrize("bits", MASTERS)
def test_a_rest_is_not_used_for_other_weights(variant: Variant, bits: str) -> None:
    """Steps in float32, then bfloat16 again: what the weights are short of now is nothing that was kept before."""
    model, optimizer = compensated(variant, **MASTERS[bits])
    run(model, optimizer, [1, 2, 3])
    model.float()
    run(model, optimizer, [4])
    model.bfloat16()
    twins, twin = copy.deepcopy((model, optimizer))
    assert not any("param_residual" in state for state in twin.state.values())
    for param, state in twin.state.items():
        dtype = torch.int8 if bits == "24" else torch.int16
        state["param_residual"] = torch.zeros(param.shape, dtype=dtype)
    for one, some in ((optimizer, model), (twin, twins)):
        run(some, one, [5, 6])
    assert_same(whole(model), whole(twins))
    assert_same(optimizer.state_dict(), twin.state_dict())


def test_a_change_to_float32_and_back_loses_nothing(variant: Variant) -> None:
    """Without a step in between the weights are those that the rest belongs to."""
    model, optimizer = compensated(variant, param_rounding="compensated")
    run(model, optimizer, [1, 2, 3])
    twins, twin = copy.deepcopy((model, optimizer))
    model.float().bfloat16()
    run(model, optimizer, [4])
    run(twins, twin, [4])
    assert_same(whole(model), whole(twins))
    assert_same(optimizer.state_dict(), twin.state_dict())


def test_a_rest_goes_where_another_rounding_was_asked_for(variant: Variant) -> None:
    """Compensation switched off and on again: the second begins with what the weights are."""
    model, optimizer = compensated(variant, param_rounding="compensated")
    run(model, optimizer, [1, 2])
    optimizer.param_groups[0]["param_rounding"] = "nearest"
    run(model, optimizer, [3])
    assert not any("param_residual" in state for state in optimizer.state.values())
    optimizer.param_groups[0]["param_rounding"] = "compensated"
    run(model, optimizer, [4])
    assert all("param_residual" in state for state in optimizer.state.values())


def test_weights_that_a_rest_does_not_belong_to_are_refused(variant: Variant) -> None:
    """float32 values that bfloat16 did not keep: neither is added, nothing changes, and the message says what to do."""
    model, optimizer = compensated(variant, param_rounding="compensated")
    run(model, optimizer, [1, 2])
    model.float()
    with torch.no_grad():
        model[0].add_(1.2345678e-3)
    before = snapshot(optimizer)
    for call in (lambda: run(model, optimizer, [3]), lambda: optimizer.load_state_dict(optimizer.state_dict())):
        with pytest.raises(ValueError, match=r"shape \(64, 64\) is not what param_residual.*delete param_residual"):
            call()
        assert_same(snapshot(optimizer), before)
    for state in optimizer.state.values():
        del state["param_residual"]
    run(model, optimizer, [3])


@pytest.mark.parametrize("budget", [0, 20_000, None])
def test_state_that_moves_changes_likewise(budget: int | None) -> None:
    """float32 and back, and loading, with pages that travel: the bits of resident state."""
    results = []
    for paged in (False, True):
        model = nn.ParameterList(weights(torch.bfloat16, SHAPES))
        settings = {"lr": 1e-3, "optim_bits": 8, "min_8bit_size": 100, "percentile_clipping": 50, **MASTERS["32"]}
        params = list(model.parameters())
        optimizer = moving(params, 300, budget, **settings) if paged else Lion(params, **settings)
        run(model, optimizer, [1, 2])
        exact = float32_parameters(model, optimizer)
        model.float()
        run(model, optimizer, [3])
        model.bfloat16()
        run(model, optimizer, [4, 5])
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        run(model, optimizer, [6])
        results.append((exact, whole(model), snapshot(optimizer)["state"]))
    assert_same(*results)
