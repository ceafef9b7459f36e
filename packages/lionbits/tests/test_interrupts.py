"""Ctrl-C at any line of a step: parameters and state are those before the step or those after it, never a mixture."""

from __future__ import annotations

import copy
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import lionbits
from lionbits import Lion, Lion8bit, fuse_into_backward, interrupts

from .family import Variant, assert_same, gradient, same, train, weights
from .movers import moving

SHAPES = [(64, 64), (70, 61), (33,)]
EVERY = 61  # lines between two interrupts; a prime, so that loops are met at all of their lines


class Stopped(Exception):
    """What a handler of the user's own raises."""


def interrupted(act: Callable[[], object], at: int, number: int = signal.SIGINT) -> tuple[int, bool]:
    """Run it with a signal at the ``at``-th line of lionbits; the lines that ran, and whether it was ended by that."""
    lines = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal lines
        if "lionbits" not in frame.f_globals.get("__name__", "") or "tests" in frame.f_code.co_filename:
            return None
        lines += event == "line"
        if event == "line" and lines == at:
            signal.raise_signal(number)
        return trace

    sys.settrace(trace)
    try:
        act()
    except (KeyboardInterrupt, Stopped):
        return lines, True
    finally:
        sys.settrace(None)
    return lines, False


@pytest.fixture(autouse=True)
def pythons_own_handler() -> Iterator[None]:
    """Every test begins with Python's handler of Ctrl-C, and must leave the handler that it found."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def whole(optimizer: Lion, params: list[nn.Parameter]) -> Any:
    """Everything that training goes on from, copied."""
    return copy.deepcopy(([param.data for param in params], optimizer.state_dict()))


def problem(make: Callable[..., Lion], steps: int) -> tuple[Lion, list[nn.Parameter], Callable[[], object]]:
    """An optimizer after so many steps, its parameters with the gradients of the next, and that step."""
    params = weights(torch.bfloat16, SHAPES)
    optimizer = make(params, lr=0.01, backend="reference")
    train(optimizer, params, range(1, steps + 1))
    for position, param in enumerate(params):
        param.grad = gradient(param, position, steps + 1)
    return optimizer, params, optimizer.step


def assert_every_interrupt_leaves_it_whole(
    make: Callable[..., Lion], steps: int, use: Callable[[Lion, Callable[[], object]], Callable[[], object]]
) -> None:
    """At lines all over what ``use`` makes of a step; then it goes on with the bits of an uninterrupted run."""
    optimizer, params, step = problem(make, steps)
    before = whole(optimizer, params)
    use(optimizer, step)()
    after = whole(optimizer, params)
    at, ended = 1, True
    while ended:
        optimizer, params, step = problem(make, steps)
        act = use(optimizer, step)
        _, ended = interrupted(act, at)
        found = whole(optimizer, params)
        if not same(found, after):
            fresh = not before[1]["state"]  # whose state may have been made, zeros
            assert ended, f"line {at}"
            assert fresh or same(found, before), f"a mixture after line {at}"
            act()
            assert_same(whole(optimizer, params), after)
        at += EVERY
    assert at > 10 * EVERY, "there were few lines to interrupt"


@pytest.mark.parametrize("steps", [0, 2], ids=["first step", "later step"])
def test_a_step_is_taken_or_not_taken(variant: Variant, steps: int) -> None:
    extra = {} if variant.cls is lionbits.QLion else {"param_rounding": "compensated", "percentile_clipping": 60}

    def make(params: Any, **settings: Any) -> Lion:
        return variant(params, **settings, **extra)

    assert_every_interrupt_leaves_it_whole(make, steps, lambda optimizer, step: step)


@pytest.mark.parametrize("settings", [{"cautious": "mask"}, {"block_wise": False}, {"nonfinite": "raise"}], ids=str)
def test_so_it_is_with_factors_of_whole_tensors(settings: dict[str, Any]) -> None:
    def make(params: Any, **more: Any) -> Lion:
        return Lion8bit(params, grad_clip=0.5, **settings, **more)

    assert_every_interrupt_leaves_it_whole(make, 1, lambda optimizer, step: step)


def test_so_it_is_with_pages_that_move() -> None:
    def make(params: Any, **more: Any) -> Lion:
        return moving(params, 1 << 12, 0, **more)

    assert_every_interrupt_leaves_it_whole(make, 1, lambda optimizer, step: step)


def test_a_state_dict_is_loaded_or_not_loaded() -> None:
    saved = problem(Lion8bit, 3)[0].state_dict()

    def load(optimizer: Lion, step: Callable[[], object]) -> Callable[[], object]:
        return lambda: optimizer.load_state_dict(saved)

    assert_every_interrupt_leaves_it_whole(Lion8bit, 1, load)


def test_in_backward_every_parameter_is_updated_or_not() -> None:
    """One that is has let its gradient go, so that none is used twice."""

    def make() -> tuple[nn.Sequential, Lion, Callable[[], object]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 70))
        optimizer = Lion8bit(model.parameters(), lr=0.01, backend="reference")
        fuse_into_backward(model, optimizer)
        optimizer.init_state()
        return model, optimizer, lambda: model(torch.ones(2, 64)).square().sum().backward()

    def held(model: nn.Module, optimizer: Lion) -> list[Any]:
        return [copy.deepcopy((p.data, optimizer.state[p])) for p in model.parameters()]

    model, optimizer, backward = make()
    before = held(model, optimizer)
    backward()
    after = held(model, optimizer)
    at, ended, mixed = 1, True, 0
    while ended:
        model, optimizer, backward = make()
        _, ended = interrupted(backward, at)
        found = held(model, optimizer)
        updated = [same(one, new) for one, new in zip(found, after, strict=True)]
        assert all(new or same(one, old) for new, one, old in zip(updated, found, before, strict=True))
        assert not any(new and p.grad is not None for new, p in zip(updated, model.parameters(), strict=True))
        mixed += len(set(updated)) == 2
        at += EVERY
    assert mixed, "no interrupt came between two parameters"


@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGINT)], ids=str)
def test_handlers_of_the_user_run_after_the_step_once_and_stay(number: int) -> None:
    """Those that raise, and those that save: schedulers of clusters send SIGTERM and SIGUSR1 before they kill."""
    optimizer, params, step = problem(Lion8bit, 1)
    saved = []

    def save(number: int, frame: FrameType | None) -> None:
        assert frame is not None
        saved.append(whole(optimizer, params))
        raise Stopped

    before = signal.signal(number, save)
    try:
        lines, _ = interrupted(step, at=-1)
        for at in range(lines // 2, lines // 2 + 5):
            optimizer, params, step = problem(Lion8bit, 1)
            saved.clear()
            _, ended = interrupted(step, at, number)
            assert ended
            assert len(saved) == 1
            assert_same(saved[0], whole(optimizer, params))
            assert {int(state["step"]) for state in optimizer.state.values()} == {2}
            assert signal.getsignal(number) is save
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL], ids=str)
def test_what_is_no_function_is_left_alone(handler: signal.Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignored, or the system's: then nothing of Python's interrupts a step."""
    optimizer, _, step = problem(Lion8bit, 1)
    before = signal.signal(signal.SIGINT, handler)
    set_handlers: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda *given: set_handlers.append(given))
    try:
        step()
    finally:
        monkeypatch.undo()
        signal.signal(signal.SIGINT, before)
    assert set_handlers == []
    assert optimizer.state


def test_a_handler_that_raises_while_handlers_are_put_back_leaves_none_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two that raise, one may come before the other is back: that one is handed on to the user's, not noted."""
    calls: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        calls.append(number)
        raise Stopped

    waiting = interrupts._Waiting({signal.SIGINT: stop, signal.SIGTERM: stop})

    def restore(number: int, handler: Any) -> None:
        waiting._handlers[number](number, None)

    monkeypatch.setattr(signal, "signal", restore)
    with pytest.raises(Stopped):
        waiting.end()
    monkeypatch.undo()
    with pytest.raises(Stopped):
        waiting(signal.SIGINT, None)
    assert calls == [signal.SIGTERM, signal.SIGINT]


def test_in_other_threads_a_step_sets_no_handler() -> None:
    """They are not interrupted, and may not set one."""
    optimizer, _, step = problem(Lion8bit, 1)
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    assert {int(state["step"]) for state in optimizer.state.values()} == {2}


def test_a_second_ctrl_c_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may hang, in a collective call for instance: who asks again wants out, whatever state is left behind."""
    _, _, step = problem(Lion8bit, 1)
    ran = []

    def hang(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)
        ran.append("after the first")
        signal.raise_signal(signal.SIGINT)
        ran.append("after the second")

    monkeypatch.setattr("lionbits.step.cache.run", hang)
    with pytest.raises(KeyboardInterrupt):
        step()
    assert ran == ["after the first"]


def test_an_error_of_the_step_comes_with_the_interrupt() -> None:
    """The interrupt is raised, with the error as its context; nothing is swallowed."""
    _, params, step = problem(lambda params, **more: Lion8bit(params, nonfinite="raise", **more), 1)
    assert params[0].grad is not None
    params[0].grad[0, 0] = float("nan")
    contexts: list[BaseException | None] = []

    def once() -> None:
        try:
            step()
        except BaseException as error:
            contexts.append(error.__context__)
            raise

    assert interrupted(once, 300)[1]
    assert isinstance(contexts[0], FloatingPointError)
