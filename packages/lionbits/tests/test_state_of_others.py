"""What wrappers keep in an optimizer's state: carried along through everything, cast and read by nothing."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import lionbits
from lionbits import Lion, Lion8bit, convert

from .family import Variant, assert_same, gradient, snapshot, train, weights
from .test_contract_state import through_file

SETTINGS: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "percentile_clipping": 50}


class Lookahead:
    """As timm's: every ``k`` steps weights go half of the way from slow ones, which it keeps in the state."""

    def __init__(self, base: Lion, k: int = 2) -> None:
        self.base, self.k, self.taken = base, k, 0

    @torch.no_grad()
    def step(self) -> None:
        self.base.step()
        self.taken += 1
        if self.taken % self.k == 0:
            for group in self.base.param_groups:
                for param in group["params"]:
                    state = self.base.state[param]
                    if "lookahead_slow_buff" not in state:
                        state["lookahead_slow_buff"] = param.detach().clone()
                    slow = state["lookahead_slow_buff"]
                    slow.add_(param - slow, alpha=0.5)
                    param.copy_(slow)

    def train(self, params: list[nn.Parameter], steps: list[int]) -> None:
        for step in steps:
            for position, param in enumerate(params):
                param.grad = gradient(param, position, step)
            self.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrapped_run_resumes(variant: Variant, dtype: torch.dtype) -> None:
    """Bit for bit, through a file and through a copy."""
    more = {"param_rounding": "compensated"} if dtype == torch.bfloat16 else {}
    params = weights(dtype)
    wrapped = Lookahead(variant(params, **SETTINGS, **more))
    wrapped.train(params, [1, 2, 3])
    resumed_params = copy.deepcopy(params)
    resumed = Lookahead(variant(resumed_params, **SETTINGS, **more))
    resumed.base.load_state_dict(through_file(wrapped.base.state_dict()))
    resumed.taken = wrapped.taken
    copies, copied = pickle.loads(pickle.dumps((params, wrapped)))
    for one, some in ((wrapped, params), (resumed, resumed_params), (copied, copies)):
        one.train(some, [4, 5, 6])
    assert_same(resumed.base.state_dict(), wrapped.base.state_dict())
    assert_same(copied.base.state_dict(), wrapped.base.state_dict())
    assert_same([param.detach() for param in resumed_params], [param.detach() for param in params])


def test_any_value_is_carried_and_none_is_cast(variant: Variant) -> None:
    """Tensors of any dtype and layout, containers of these, and objects; the one that loads owns its copies."""
    params = weights(torch.bfloat16)
    optimizer = variant(params, param_rounding="compensated")
    train(optimizer, params, [1])
    notes = {
        "double": torch.tensor([0.1], dtype=torch.float64),
        "short": torch.arange(3, dtype=torch.int16),
        "sparse": torch.eye(3).to_sparse(),
        "nested": {"list": [torch.ones(2, dtype=torch.float64), 3], "pair": (torch.zeros(1), "x")},
        "text": "mine",
        "none": None,
    }
    optimizer.state[params[0]]["mkldnn"] = torch.ones(2, 2).to_mkldnn()
    optimizer.state[params[0]]["meta"] = torch.ones(2, 2, device="meta")
    optimizer.state[params[0]].update(copy.deepcopy(notes))
    twins = copy.deepcopy(params)
    target = variant(twins, param_rounding="compensated")
    given = optimizer.state_dict()
    assert {key: given["state"][0][key] for key in ("text", "none")} == {"text": "mine", "none": None}
    target.load_state_dict(given)
    held = target.state[twins[0]]
    assert torch.equal(held.pop("mkldnn").to_dense(), torch.ones(2, 2))
    assert held.pop("meta").is_meta
    found = {key: held[key] for key in notes}
    assert torch.equal(found.pop("sparse").to_dense(), notes.pop("sparse").to_dense())
    assert_same(found, notes)
    optimizer.state[params[0]]["double"].zero_()
    optimizer.state[params[0]]["nested"]["list"][0].zero_()
    assert_same({key: held[key] for key in notes}, notes)
    train(target, twins, [2])
    assert_same({key: held[key] for key in notes}, notes)


def test_a_pickle_carries_what_has_no_storage(variant: Variant) -> None:
    optimizer = variant(params := weights())
    train(optimizer, params, [1])
    optimizer.state[params[0]]["sparse"] = torch.eye(3).to_sparse()
    copied = pickle.loads(pickle.dumps(optimizer))
    held = copied.state[copied.param_groups[0]["params"][0]]
    assert torch.equal(held["sparse"].to_dense(), torch.eye(3))


def test_conversion_carries_them() -> None:
    params = weights()
    optimizer = Lion(params)
    train(optimizer, params, [1])
    optimizer.state[params[0]]["slow"] = torch.ones(64, 64, dtype=torch.float64)
    narrow = Lion8bit(weights())
    narrow.load_state_dict(convert(optimizer.state_dict(), narrow))
    held = narrow.state[narrow.param_groups[0]["params"][0]]
    assert_same(held["slow"], torch.ones(64, 64, dtype=torch.float64))
    assert held["exp_avg_codes"].dtype == torch.uint8


@pytest.mark.parametrize("how", ["a step", "init_state", "loading", "in backward"])
def test_state_that_was_there_before_the_first_step_is_fresh(variant: Variant, how: str) -> None:
    """A wrapper's: it stays, momentum begins at zero, and the step is that of an optimizer without it."""
    model, alone = (nn.ParameterList(weights()) for _ in range(2))
    optimizer, other = variant(model.parameters(), **SETTINGS), variant(alone.parameters(), **SETTINGS)
    slow = torch.full((64, 64), 7.0)
    optimizer.state[model[0]]["slow"] = slow
    assert not optimizer.momentum(model[0]).any()
    if how == "init_state":
        optimizer.init_state()
    elif how == "loading":
        saved = through_file(optimizer.state_dict())
        optimizer = variant(model.parameters(), **SETTINGS)
        optimizer.load_state_dict(saved)
    elif how == "in backward":
        lionbits.fuse_into_backward(model, optimizer)
    for position, param in enumerate(model):
        if how == "in backward":
            (param * torch.full(param.shape, 0.5 + position)).sum().backward()
    if how == "in backward":
        for position, param in enumerate(alone):
            param.grad = torch.full(param.shape, 0.5 + position)
        other.step()
        optimizer.step()
    else:
        train(optimizer, list(model), [1])
        train(other, list(alone), [1])
    assert_same([param.detach() for param in model], [param.detach() for param in alone])
    held = dict(optimizer.state[model[0]])
    assert_same(held.pop("slow"), slow)
    assert_same(held, other.state[alone[0]])


def test_state_of_other_optimizers_is_not_taken_for_a_wrappers(variant: Variant) -> None:
    """SGD's momentum under its own name would be lost without a word."""
    params = weights()
    sgd = torch.optim.SGD(params, momentum=0.9)
    train(sgd, params, [1])
    target = variant(weights())
    before = snapshot(target)
    with pytest.raises(ValueError, match=r"parameter 0.*momentum_buffer.*not lionbits state"):
        target.load_state_dict(sgd.state_dict())
    assert_same(snapshot(target), before)
