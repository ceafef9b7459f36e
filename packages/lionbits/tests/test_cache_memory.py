"""What is kept from step to step keeps nothing else alive, goes into no copy, and counts what graphs do."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion
from lionbits.step import cache
from lionbits.step import snapshot as snapshots

from .differential import replace_tensors, swap_each
from .family import Variant, assert_same, snapshot, train, weights


def _state_tensors(optimizer: Lion) -> list[weakref.ref[torch.Tensor]]:
    """All but the counts, which are eight bytes each."""
    held = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    return [weakref.ref(value) for value in held if isinstance(value, torch.Tensor)]


def test_copies_share_nothing_that_is_kept(variant: Variant) -> None:
    """Original and copies go separate ways, and each as if it were alone."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, (1, 2))
    twins = [copy.deepcopy((params, optimizer)), pickle.loads(pickle.dumps((params, optimizer)))]
    for _, twin in twins:
        assert twin._step_cache is None
    train(optimizer, params, (3, 4))
    for their_params, twin in twins:
        train(twin, their_params, (3, 4))
        assert_same(snapshot(twin), snapshot(optimizer))


def test_gradients_die_when_they_are_let_go_of(variant: Variant) -> None:
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, (1, 2))
    refs = [weakref.ref(param.grad) for param in params]
    gc.disable()
    try:
        optimizer.zero_grad()
        assert not [ref for ref in refs if ref() is not None]
    finally:
        gc.enable()


def test_state_dies_with_the_optimizer(variant: Variant) -> None:
    """At once: nothing waits for the garbage collector."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, (1, 2))
    refs = _state_tensors(optimizer)
    gc.disable()
    try:
        del optimizer
        assert not [ref for ref in refs if ref() is not None]
    finally:
        gc.enable()


def test_what_is_moved_away_leaves_its_place(variant: Variant) -> None:
    """State and parameters that are replaced between steps, to make room, do not live on in what is kept."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, (1, 2))
    refs = _state_tensors(optimizer)
    storages = [weakref.ref(param.untyped_storage()) for param in params]
    gc.disable()
    try:
        replace_tensors(optimizer, params)
        swap_each(torch.clone)(optimizer, params)
        assert not [ref for ref in (*refs, *storages) if ref() is not None]
    finally:
        gc.enable()


def test_loading_lets_go_of_what_was_there(variant: Variant) -> None:
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, (1, 2))
    saved = copy.deepcopy(optimizer.state_dict())
    refs = _state_tensors(optimizer)
    gc.disable()
    try:
        optimizer.load_state_dict(saved)
        assert not [ref for ref in refs if ref() is not None]
    finally:
        gc.enable()


def test_counts_are_read_back_after_a_capture(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay counts on the device alone; checkpoints, copies and later steps hear of it."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, (1,))
    monkeypatch.setattr(cache, "capturing", lambda device: True)
    train(optimizer, params, (2,))
    monkeypatch.undo()
    assert optimizer._step_cache is not None
    for group in optimizer._step_cache._launch_groups:
        group.scalars.step.add_(5)  # as replays do
    for state in optimizer.state_dict()["state"].values():
        assert state["step"] == 7
    for group in optimizer._step_cache._launch_groups:
        group.scalars.step.add_(1)
    assert {int(state["step"]) for state in copy.deepcopy(optimizer).state.values()} == {8}
    for group in optimizer._step_cache._launch_groups:
        group.scalars.step.add_(1)
    train(optimizer, params, (3,))
    assert {int(state["step"]) for state in optimizer.state.values()} == {10}
    for group in optimizer._step_cache._launch_groups:
        group.scalars.step.add_(1)
    optimizer.state[params[0]]["step"] = 3  # by hand, which counts more
    optimizer.param_groups[0]["betas"] = (0.5, 0.5)
    train(optimizer, params, (4,))
    assert [state["step"] for state in optimizer.state.values()].count(12) == len(params) - 1
    assert optimizer.state[params[0]]["step"] == 4


def test_without_torchs_guards_the_same_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison in Python, for a torch that has none in C++, tells the same apart."""
    square, strided = torch.zeros(4, 4), torch.zeros(8, 4)[::2]
    cases: list[tuple[Any, Any]] = [
        (square, torch.ones(4, 4)),
        (square, square.double()),
        (square, torch.zeros(2, 8)),
        (square, strided),
        (square, nn.Parameter(square)),
        (nn.Parameter(square), nn.Parameter(square, requires_grad=False)),
        (square, square.to_sparse()),
        (square, square.to("meta")),
        (square, None),
    ]
    fast = [snapshots._alike([then])(now) for then, now in cases]
    monkeypatch.setitem(sys.modules, "torch._C._dynamo.guards", None)
    slow = [snapshots._alike([then])(now) for then, now in cases]
    assert fast == slow == [True] + [False] * (len(cases) - 1)


def test_an_address_that_is_used_again_is_not_taken_for_what_was_there() -> None:
    """A state tensor dies, and the next is born where it was."""
    params = weights()
    optimizer = Lion(params)
    train(optimizer, params, (1, 2))
    kept, state = optimizer._step_cache, optimizer.state[params[1]]
    value, place = state["exp_avg"].clone(), id(state["exp_avg"])
    del state["exp_avg"]
    born = [value.detach()]
    while id(born[-1]) != place and len(born) < 1000:
        born.append(value.detach())
    assert id(born[-1]) == place
    state["exp_avg"] = born[-1]
    train(optimizer, params, (3,))
    assert optimizer._step_cache is not kept


def _recorded(optimizer: Lion, params: list[nn.Parameter], step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a step as a graph records one."""
    with monkeypatch.context() as patch:
        patch.setattr(cache, "capturing", lambda device: True)
        train(optimizer, params, (step,))


def _rebuilt(optimizer: Lion, params: list[nn.Parameter], step: int) -> weakref.ref[Any]:
    """Take a step for which all is made anew, and return what it leaves for the next."""
    optimizer.param_groups[0]["betas"] = (0.5, 0.5 + step / 100)
    train(optimizer, params, (step,))
    return weakref.ref(optimizer._step_cache)


def test_what_no_graph_reads_is_let_go_of(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a recording, and after another, only what was recorded stays, and what the next step uses."""
    params = weights()
    optimizer = variant(params)
    gc.disable()
    try:
        made = [_rebuilt(optimizer, params, 1)]
        _recorded(optimizer, params, 2, monkeypatch)
        made += [_rebuilt(optimizer, params, step) for step in range(3, 9)]
        assert [number for number, ref in enumerate(made) if ref() is not None] == [0, 6]
        _recorded(optimizer, params, 9, monkeypatch)
        made += [_rebuilt(optimizer, params, step) for step in range(10, 13)]
        assert [number for number, ref in enumerate(made) if ref() is not None] == [0, 6, 9]
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert [number for number, ref in enumerate(made) if ref() is not None] == [0, 6]
    finally:
        gc.enable()
    assert {int(state["step"]) for state in optimizer.state.values()} == {12}
    train(optimizer, params, (13,))
    assert {int(state["step"]) for state in optimizer.state.values()} == {13}
