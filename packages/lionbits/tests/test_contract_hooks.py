"""torch.optim's six kinds of hooks, for every variant: which run, in which order, and what they may change."""

from __future__ import annotations

import contextlib
import copy
import functools
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .family import Variant, assert_same, snapshot, train, weights


def test_step_hooks_run_around_the_update_in_order(variant: Variant) -> None:
    """Global pre, own pre, update, own post, global post; after removal none runs."""
    params = weights()
    optimizer, start = variant(params), params[0].detach().clone()
    seen: list[tuple[str, bool]] = []

    def note(name: str) -> Any:
        return lambda opt, args, kwargs: seen.append((name, torch.equal(params[0], start)))

    handles = [
        optimizer.register_step_post_hook(note("post")),
        optimizer.register_step_pre_hook(note("pre")),
        optimizer.register_step_pre_hook(note("pre 2")),
        register_optimizer_step_post_hook(note("global post")),
        register_optimizer_step_pre_hook(note("global pre")),
    ]
    try:
        train(optimizer, params, [1])
    finally:
        for handle in handles:
            handle.remove()
    before, after = (("global pre", "pre", "pre 2"), ("post", "global post"))
    assert seen == [*((name, True) for name in before), *((name, False) for name in after)]
    train(optimizer, params, [2])
    assert len(seen) == 5


def test_step_pre_hook_may_replace_the_closure(variant: Variant) -> None:
    """What a pre-hook returns becomes the arguments of ``step``."""
    optimizer = variant(weights())
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: ((opt, lambda: "hooked"), {}))
    assert optimizer.step(lambda: "given") == "hooked"


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
def test_step_hooks_run_once_for_a_subclass_with_a_step_of_its_own(variant: Variant, wrapped: bool) -> None:
    """Torch wraps the subclass's step, and hooks do not run again in the one that it calls; nor if the subclass says
    by ``functools.wraps`` that it is that one, so that torch leaves it alone."""
    base = type(variant(weights()))

    def step(self: torch.optim.Optimizer, closure: Any = None) -> Any:
        seen.append("own")
        return base.step(self, closure)

    own = type("Own", (base,), {"step": functools.wraps(base.step)(step) if wrapped else step})
    seen: list[str] = []
    params = weights()
    optimizer = own(params, **variant.settings)
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    train(optimizer, params, [1])
    assert sorted(seen) == ["own", "post", "pre"]


def test_profilers_see_the_step_by_its_name(variant: Variant) -> None:
    """As of every optimizer of torch; and a step outside of them is the same step."""
    ends = []
    for watched in (True, False):
        params = weights()
        optimizer = variant(params)
        with torch.profiler.profile() if watched else contextlib.nullcontext() as profile:
            train(optimizer, params, [1])
        ends.append(snapshot(optimizer)["state"])
        if watched:
            assert profile is not None
            assert f"Optimizer.step#{type(optimizer).__name__}.step" in {event.name for event in profile.events()}
    assert_same(*ends)


def test_state_dict_hooks_run_in_order_and_may_change_the_result(variant: Variant) -> None:
    """Pre-hooks, then post-hooks; ``prepend`` comes first; a post-hook changes the dict in place or returns another."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, [1])
    seen: list[str] = []

    def add(opt: torch.optim.Optimizer, given: dict[str, Any]) -> None:
        seen.append("post")
        given["note"] = "hello"

    def replace(opt: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
        seen.append("post first")
        return {**given, "epoch": 3}

    optimizer.register_state_dict_pre_hook(lambda opt: seen.append("pre"))
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append("pre first"), prepend=True)
    optimizer.register_state_dict_post_hook(add)
    optimizer.register_state_dict_post_hook(replace, prepend=True)
    result = optimizer.state_dict()
    assert seen == ["pre first", "pre", "post first", "post"]
    assert (result["epoch"], result["note"]) == (3, "hello")
    assert result.keys() == {"state", "param_groups", "epoch", "note"}


def test_state_dict_hook_may_wrap_the_result(variant: Variant) -> None:
    """A post-hook may return any dict, and sees the finished one, version included."""
    optimizer = variant(weights())
    optimizer.register_state_dict_post_hook(lambda opt, given: {"optimizer": copy.deepcopy(given)})
    wrapped = optimizer.state_dict()
    assert wrapped.keys() == {"optimizer"}
    assert wrapped["optimizer"]["param_groups"][0]["lionbits_version"] == 3


def test_load_hooks_run_in_order_around_the_load(variant: Variant) -> None:
    """Pre-hooks see the dict before it is taken over, post-hooks the optimizer after; ``prepend`` comes first."""
    params = weights()
    optimizer = variant(params, lr=0.5)
    train(optimizer, params, [1])
    target = variant(copy.deepcopy(params), lr=0.25)
    seen: list[tuple[str, float, bool]] = []

    def note(name: str) -> Any:
        def hook(opt: torch.optim.Optimizer, given: dict[str, Any] | None = None) -> None:
            plain = given is None or type(given["state"][0]) is dict
            seen.append((name, opt.param_groups[0]["lr"], plain))

        return hook

    target.register_load_state_dict_post_hook(note("post"))
    target.register_load_state_dict_post_hook(note("post first"), prepend=True)
    target.register_load_state_dict_pre_hook(note("pre"))
    target.register_load_state_dict_pre_hook(note("pre first"), prepend=True)
    for _ in range(2):
        target.load_state_dict(optimizer.state_dict())
        target.param_groups[0]["lr"] = 0.25
    before = [("pre first", 0.25, True), ("pre", 0.25, True)]
    assert seen == [*before, ("post first", 0.5, True), ("post", 0.5, True)] * 2


def test_load_pre_hook_may_change_or_replace_the_dict(variant: Variant) -> None:
    """What a load pre-hook writes or returns is what is loaded, while the caller's dict stays as it was."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, [1])
    given = optimizer.state_dict()
    target = variant(copy.deepcopy(params))

    def rename(opt: torch.optim.Optimizer, wrapped: dict[str, Any]) -> dict[str, Any]:
        inner: dict[str, Any] = copy.deepcopy(wrapped["optimizer"])
        inner["param_groups"][0]["lr"] = 0.125
        return inner

    target.register_load_state_dict_pre_hook(rename)
    target.load_state_dict({"optimizer": given})
    assert target.param_groups[0]["lr"] == 0.125
    assert_same(snapshot(target)["state"], snapshot(optimizer)["state"])
    assert given["param_groups"][0]["lr"] == optimizer.param_groups[0]["lr"] != 0.125


@pytest.mark.parametrize("kind", ["pre", "bad dict"])
def test_load_that_fails_leaves_no_hook_behind(variant: Variant, kind: str) -> None:
    """After a refused load, or a pre-hook that raises, optimizer and hooks are as before and a good load works."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, [1])
    target = variant(copy.deepcopy(params))
    before = snapshot(target)
    good = optimizer.state_dict()
    if kind == "pre":

        def refuse(opt: torch.optim.Optimizer, given: dict[str, Any]) -> None:
            raise ValueError("from the hook")

        handle = target.register_load_state_dict_pre_hook(refuse)
        with pytest.raises(ValueError, match="from the hook"):
            target.load_state_dict(good)
        handle.remove()
    else:
        with pytest.raises(ValueError, match="groups"):
            target.load_state_dict({**good, "param_groups": []})
    assert_same(snapshot(target), before)
    target.load_state_dict(good)
    assert_same(target.state_dict(), good)
