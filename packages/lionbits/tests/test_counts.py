"""``step`` in the state: a 0-d int64 tensor on the CPU, counted for all at once, and right whoever writes to it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp

from lionbits import Lion, fuse_into_backward

from .differential import DifferentialRun
from .family import Variant, assert_same, snapshot, train, weights
from .test_contract_state import through_file

#: What a step depends on: rounding noise on the count, percentile clipping too.
COUNTING: dict[str, Any] = {"lr": 0.01, "percentile_clipping": 50, "rounding": "stochastic"}


def _runs(variant: Variant) -> tuple[list[nn.Parameter], Lion]:
    params = weights()
    optimizer = variant(params, **COUNTING)
    train(optimizer, params, [1, 2, 3])
    return params, optimizer


def test_the_step_of_a_state_dict_is_the_optimizers_own(variant: Variant) -> None:
    """As all state tensors of torch's optimizers: it counts on in a state dict that is kept, and is no parameter's."""
    params, optimizer = _runs(variant)
    kept = optimizer.state_dict()["state"]
    for count in (3, 4):
        for position, state in kept.items():
            step = state["step"]
            assert (step.dtype, step.shape, step.device.type, int(step)) == (torch.int64, (), "cpu", count)
            assert step is optimizer.state[params[position]]["step"]
        train(optimizer, params, [4])
    assert through_file(optimizer.state_dict())["state"][0]["step"].dtype == torch.int64


@pytest.mark.parametrize("loads", [True, False], ids=["and loads", "in place alone"])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "after other steps"])
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_distributed_checkpoint_brings_the_step(variant: Variant, tmp_path: Path, loads: bool, fresh: bool) -> None:
    """``dcp.load`` fills tensors in place: with ``load_state_dict`` after it or without, as with torch's optimizers."""
    params, optimizer = _runs(variant)
    dcp.save({"optim": optimizer.state_dict()}, checkpoint_id=str(tmp_path), no_dist=True)
    twins = weights()
    twin = variant(twins, **COUNTING)
    if fresh:
        twin.init_state()
    else:
        train(twin, twins, [7])
    for other, param in zip(twins, params, strict=True):
        other.data.copy_(param)
    held = {"optim": twin.state_dict()}
    dcp.load(held, checkpoint_id=str(tmp_path), no_dist=True)
    if loads:
        twin.load_state_dict(held["optim"])
    assert_same(twin.state_dict()["state"], optimizer.state_dict()["state"])
    train(optimizer, params, [4, 5])
    train(twin, twins, [4, 5])
    assert_same(snapshot(twin)["state"], snapshot(optimizer)["state"])
    assert_same(snapshot(twin)["params"], snapshot(optimizer)["params"])


def test_every_value_of_a_state_goes_to_the_host(variant: Variant) -> None:
    """FSDP1 calls ``cpu()`` on each to hand it to other ranks."""
    _, optimizer = _runs(variant)
    for state in optimizer.state_dict()["state"].values():
        assert all(isinstance(value.cpu(), Tensor) for value in state.values())


def _data(state: dict[str, Any]) -> None:
    state["step"].data = state["step"].data.clone().fill_(41)


def _through_data(state: dict[str, Any]) -> None:
    state["step"].data.fill_(41)


WRITERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an int": lambda state: state.update(step=41),
    "a number of numpy": lambda state: state.update(step=np.int64(41)),
    "a tensor": lambda state: state.update(step=torch.tensor(41)),
    "a float tensor": lambda state: state.update(step=torch.tensor([41.0])),
    "in place": lambda state: state["step"].fill_(41),
    "in place through data": _through_data,
    "other data": _data,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("everyone", [True, False])
def test_a_count_that_is_set_by_hand_counts(variant: Variant, name: str, everyone: bool) -> None:
    """However it is set; parameters whose count was not touched go on with theirs."""
    params, optimizer = _runs(variant)
    touched = params if everyone else params[:1]
    for param in touched:
        WRITERS[name](optimizer.state[param])
    train(optimizer, params, [4])
    expected = [42 if everyone or position == 0 else 4 for position in range(len(params))]
    assert [state["step"].item() for state in optimizer.state.values()] == expected
    found = optimizer.state_dict()["state"]
    assert [found[position]["step"].item() for position in range(len(params))] == expected


@pytest.mark.parametrize("name", WRITERS)
def test_a_step_after_it_is_that_of_the_count(name: str, pair: DifferentialRun) -> None:
    """The numbers that kernels read are those of the count that is there."""
    pair.both(lambda optimizer, params: [WRITERS[name](state) for state in optimizer.state.values()])
    pair.step(2)


WRONG: dict[str, Any] = {
    "negative": -1,
    "a fraction": torch.tensor(1.5),
    "two": torch.tensor([1, 2]),
    "a bool": torch.tensor(True),
    "complex": torch.tensor(1j),
    "no value": torch.tensor(3, device="meta"),
    "sparse": torch.tensor([3]).to_sparse(),
    "too many": 10**400,
    "none": None,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_count_that_is_none_is_refused(name: str) -> None:
    params = weights()
    optimizer = Lion(params)
    train(optimizer, params, [1])
    saved = optimizer.state_dict()
    for state in (optimizer.state[params[1]], saved["state"][1]):
        state["step"] = WRONG[name]
    before = [param.detach().clone() for param in params]
    with pytest.raises(ValueError, match=r"parameter of shape \(70, 61\) has step=") as caught:
        train(optimizer, params, [2])
    assert len(str(caught.value)) < 400
    with pytest.raises(ValueError, match="parameter 1 has step="):
        optimizer.load_state_dict(saved)
    assert_same([param.detach() for param in params], before)


def test_a_checkpoint_with_an_int_loads(variant: Variant) -> None:
    """As written before the step was a tensor; pickled optimizers likewise."""
    params, optimizer = _runs(variant)
    older = copy.deepcopy(optimizer.state_dict())
    for state in older["state"].values():
        state["step"] = int(state["step"])
    twins = copy.deepcopy(params)
    twin = variant(twins, **COUNTING)
    twin.load_state_dict(older)
    assert_same(twin.state_dict(), optimizer.state_dict())
    for state in twin.state.values():
        state["step"] = int(state["step"])
    twins, twin = pickle.loads(pickle.dumps((twins, twin)))
    assert_same(twin.state_dict(), optimizer.state_dict())
    train(optimizer, params, [4])
    train(twin, twins, [4])
    assert_same(snapshot(twin), snapshot(optimizer))


def test_a_note_that_has_a_step_is_left_alone() -> None:
    params = weights()
    optimizer = Lion(params)
    train(optimizer, params, [1])
    optimizer.state["note"] = {"step": 5}  # type: ignore[index]
    assert optimizer.state_dict()["state"]["note"] == {"step": 5}
    assert type(optimizer.state["note"]["step"]) is int  # type: ignore[index]


def test_counts_of_copies_are_their_own(variant: Variant) -> None:
    """Counts lie in one vector; a copy, and what loads a live state dict, has another."""
    params, optimizer = _runs(variant)
    twins, twin = copy.deepcopy((params, optimizer))
    other = variant(weights(), **COUNTING)
    other.load_state_dict(optimizer.state_dict())
    train(optimizer, params, [4])
    assert [state["step"].item() for state in twin.state.values()] == [3] * len(params)
    assert [state["step"].item() for state in other.state.values()] == [3] * len(params)
    train(twin, twins, [4, 5])
    assert [state["step"].item() for state in optimizer.state.values()] == [4] * len(params)


def test_updates_in_backward_count(variant: Variant) -> None:
    """One parameter at a time, and together again."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 1))
    optimizer = variant(model.parameters(), **COUNTING)
    fused = fuse_into_backward(model, optimizer)
    for _ in range(2):
        model(torch.ones(2, 64)).sum().backward()
        optimizer.step()
    kept = optimizer.state_dict()["state"]
    assert [state["step"].item() for state in kept.values()] == [2] * 4
    fused.remove()
    model(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    assert [state["step"].item() for state in optimizer.state.values()] == [3] * 4
