"""Torch's modes may be entered and left between two steps: nothing is prepared again for it, and every bit stays."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import lionbits
from lionbits import Lion
from lionbits.step import prepare
from lionbits.step.launch import LaunchGroup

from .family import FREE_GRADIENTS, Variant, assert_same, free_gradients, gradient, snapshot, train, weights
from .movers import moving

Mode = Callable[[], AbstractContextManager[Any]]

MODES: dict[str, Mode] = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "flop counter": lambda: FlopCounterMode(display=False),
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "gradients off": lambda: torch.set_grad_enabled(False),
    "inference_mode": torch.inference_mode,
    "not in inference_mode": lambda: torch.inference_mode(False),
    "autograd's profiler": torch.autograd.profiler.profile,
    "profiler": torch.profiler.profile,
    "another default device": lambda: torch.device("meta"),
}

#: Steps that are taken inside a mode, out of four.
INSIDE = {"entered": (3, 4), "left": (1, 2), "in turn": (2, 4)}


def moved(params: list[nn.Parameter], **more: Any) -> Lion:
    """Paged, and its state moves."""
    return moving(params, 1000, 4000, optim_bits=8, **more)


MADE: dict[str, Callable[..., Lion]] = {
    "32 bits": lionbits.Lion,
    "8 bits": partial(lionbits.Lion8bit, percentile_clipping=50, cautious="mask"),
    "4 bits, one scale": partial(lionbits.Lion4bit, block_wise=False),
    "paged": partial(lionbits.PagedLion8bit, grad_clip=3.0),
    "paged, moving": partial(moved, nonfinite="raise"),
    "QLion": partial(lionbits.QLion, use_4bit=True),
}


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of launch groups that were prepared, for each time that some were."""
    times: list[int] = []
    original = prepare.prepare

    def counted(launch_groups: Sequence[LaunchGroup], *rest: Any) -> None:
        times.append(len(launch_groups))
        original(launch_groups, *rest)

    monkeypatch.setattr(prepare, "prepare", counted)
    return times


def run(make: Callable[..., Lion], mode: Mode, inside: Sequence[int]) -> Lion:
    """Four steps, of which some are taken inside the mode."""
    params = weights()
    optimizer = make(params, lr=0.01, weight_decay=0.1)
    for step in range(1, 5):
        for position, param in enumerate(params):
            param.grad = gradient(param, position, step)
        with mode() if step in inside else nullcontext():
            optimizer.step()
    return optimizer


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_modes_change_nothing(make: Callable[..., Lion], mode: Mode, prepared: list[int]) -> None:
    """One preparation, at the first step, and the same bits: of parameters, state and counts."""
    one = run(make, mode, ())
    for where, inside in INSIDE.items():
        prepared.clear()
        other = run(make, mode, inside)
        assert len(prepared) == 1, where
        assert_same(snapshot(other), snapshot(one))
        assert other.skipped_elements() == one.skipped_elements() == 0
        assert other.paging_stats() == one.paging_stats()
    assert make is not MADE["paged, moving"] or one.paging_stats().pages_in > 0


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_change_inside_a_mode_is_noticed(mode: Mode, prepared: list[int]) -> None:
    """Strides, dtypes, addresses, what is trained: as outside."""
    changes: dict[str, Callable[[nn.Parameter], Any]] = {
        "address": lambda param: setattr(param, "data", param.data.clone()),
        "strides": lambda param: setattr(param, "grad", param.grad.t().contiguous().t()),
        "frozen": lambda param: param.requires_grad_(False),
        "no gradient": lambda param: setattr(param, "grad", None),
    }
    if FREE_GRADIENTS:
        changes["dtype"] = lambda param: (free_gradients(param), setattr(param, "grad", param.grad.bfloat16()))
    for name, change in changes.items():
        ends = []
        for inside in (False, True):
            params = weights()
            optimizer = Lion(params, optim_bits=8)
            train(optimizer, params, (1, 2))
            for position, param in enumerate(params):
                param.grad = gradient(param, position, 3)
            change(params[0])
            prepared.clear()
            with mode() if inside else nullcontext():
                optimizer.step()
            assert len(prepared) == 1, name
            ends.append(snapshot(optimizer))
        assert_same(*ends)


def test_sparse_gradients_are_refused_inside_a_mode() -> None:
    params = weights()
    optimizer = Lion(params)
    train(optimizer, params, (1, 2))
    before = snapshot(optimizer)
    params[0].grad = torch.sparse_coo_tensor([[0], [0]], [1.0], tuple(params[0].shape), check_invariants=True)
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert_same(snapshot(optimizer), before)


def test_state_that_is_made_or_loaded_in_inference_mode_is_trained_outside(variant: Variant) -> None:
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, (1, 2))
    made, loaded = variant(twins := copy.deepcopy(params)), variant(others := copy.deepcopy(params))
    start = variant(beginners := copy.deepcopy(params))
    saved = copy.deepcopy(optimizer.state_dict())
    with torch.inference_mode():
        made.init_state()
        loaded.load_state_dict(saved)
    for each, its in ((optimizer, params), (made, twins), (loaded, others), (start, beginners)):
        train(each, its, (3, 4))
    assert_same(snapshot(loaded), snapshot(optimizer))
    assert_same(snapshot(made)["state"], snapshot(start)["state"])


def test_parameters_that_were_made_in_inference_mode_are_trained_there(variant: Variant) -> None:
    """Nowhere else may they be changed."""
    params = weights()
    plain = variant(params)
    train(plain, params, (1, 2, 3))
    with torch.inference_mode():
        params = weights()
        optimizer = variant(params)
        train(optimizer, params, (1, 2, 3))
        assert_same(snapshot(optimizer), snapshot(plain))
