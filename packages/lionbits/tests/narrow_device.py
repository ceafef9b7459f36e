"""A device without binary64, on the CPU: tensors that say they are on Apple's, and refuse float64 as it does.

Memory is the CPU's, and so is all arithmetic. A tensor of the device only mixes with others of it and with numbers, and
with 0-d tensors of the CPU, as on a real one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

DEVICE = torch.device("mps", 0)


class Narrow(Tensor):
    """A tensor of the device, over one of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Narrow:
        if held.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        form = {"strides": held.stride(), "dtype": held.dtype, "device": DEVICE}
        made: Narrow = Tensor._make_wrapper_subclass(cls, held.shape, **form)
        made.held = held
        return made

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.__name__ in ("__get__", "__set__", "requires_grad_", "backward"):  # of the tensor itself
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **(kwargs or {}))
        return computed(function, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})


class NarrowDevice(TorchFunctionMode):
    """While it is there, so is the device: factories and ``to`` know it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(_is_device(value) for value in (*args, *kwargs.values())) and function is not torch.device:
            return computed(function, args, kwargs)
        return function(*args, **kwargs)


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value in ("cpu", "mps"))


def computed(function: Any, args: Any, kwargs: Any) -> Any:
    """The function of what tensors hold; its results are on the device that was asked for, or else where they are."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    known = {id(value.held): value for value in tensors if isinstance(value, Narrow)}
    asked = [torch.device(value).type for value in (*args, *kwargs.values()) if _is_device(value)]
    moves = bool(asked) or function.__name__ in ("copy_", "copy_.default")
    if known and not moves:
        assert all(isinstance(value, Narrow) or not value.dim() for value in tensors), f"{function}: two devices"
    there = asked[0] == "mps" if asked else bool(known)

    def plain(value: Any) -> Any:
        if isinstance(value, Narrow):
            return value.held
        return "cpu" if _is_device(value) else value

    def placed(value: Tensor) -> Tensor:
        if there and id(value) in known:
            return known[id(value)]  # the same, or changed in place
        if isinstance(value, Narrow) or (not moves and any(value is other for other in tensors)):
            return value
        moved = bool(asked) and there != bool(known) and bool(tensors)
        here = value.clone() if moved else value
        return Narrow(here) if there else here

    result = function(*tree_map(plain, args), **tree_map(plain, kwargs))
    if function.__name__ == "copy_":
        return args[0]
    return tree_map_only(Tensor, placed, result)
