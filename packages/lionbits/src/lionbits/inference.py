"""Tensors that are kept must not be made in ``torch.inference_mode``: outside, nothing may change them in place."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

O = TypeVar("O", bound=Optimizer)
P = ParamSpec("P")
R = TypeVar("R")


def outside_inference_mode(method: Callable[Concatenate[O, P], R]) -> Callable[Concatenate[O, P], R]:
    """The method, outside inference mode even where it is called inside.

    Not with a parameter that was made inside, which may be changed there alone.
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
