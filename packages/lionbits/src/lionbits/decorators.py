"""Decorators of an optimizer's methods: torch's hooks, inference mode, and torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import torch_private

O = TypeVar("O", bound=Optimizer)
P = ParamSpec("P")
R = TypeVar("R")


def hooked_if_watched(step: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a step so that it runs hooks and profiler records only if there are any.

    torch wraps the step of every optimizer for both. Without either, that wrapper is a fifth of the step of a small
    tensor (17 of 74 us; 0.12 of 0.59 ms where the caches are full of a model). ``torch.compile`` leaves it out, too.
    If torch's wrapper cannot be reached, the step is returned as it is, for torch to wrap.
    """
    watched = torch_private.with_hooks(step)
    if watched is None:
        return step
    code = watched.__code__

    @functools.wraps(step)
    def call(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        # A subclass with a step of its own: torch has wrapped that one, and what it calls is not to be hooked again.
        is_outermost = getattr(type(self).step, "__code__", None) is not code
        return (watched if is_outermost and torch_private.is_watched(self) else step)(self, *args, **kwargs)

    torch_private.leave_unwrapped(call)
    return call


def outside_inference_mode(method: Callable[Concatenate[O, P], R]) -> Callable[Concatenate[O, P], R]:
    """Run the method outside inference mode, even if it is called inside.

    Tensors that are kept must not be made inside: outside, nothing may change them in place. If a parameter was
    made inside, where alone it may be changed, the method runs in the mode of the call.
    """

    @functools.wraps(method)
    def call(self: O, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_inference_mode_enabled() or _has_inference_parameters(self):
            return method(self, *args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():  # the first would enable gradients
            return method(self, *args, **kwargs)

    return call


def _has_inference_parameters(optimizer: Optimizer) -> bool:
    params: list[Tensor] = [param for group in optimizer.param_groups for param in group["params"]]
    return any(map(Tensor.is_inference, params))


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Apply ``torch.compiler.disable`` at the first call.

    Applied at import it would import torch._dynamo, which takes longer than torch itself. torch's optimizers likewise
    put that off until they are made.
    """
    disabled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return call
