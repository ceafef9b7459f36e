"""Change detection between two steps, by a few calls that compare whole lists in C.

A step over hundreds of tensors can afford a few passes over them, but not a Python statement for each. Each class here
takes a snapshot, and compares it with the present. It covers everything that ``collect`` and ``prepare`` of
:mod:`lionbits.step.prepare` read, by identity if an equal value may be another object. They decide whether a change is
accepted; here nothing is refused.

A snapshot keeps no storage alive: state that is moved to the host between two steps must leave the device then.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from lionbits import settings, torch_private

Group = dict[str, Any]
State = dict[str, Any]


_params, _betas, _step = itemgetter("params"), itemgetter("betas"), itemgetter("step")
_structure, _rates = itemgetter(*settings.STRUCTURE), itemgetter(*settings.RATES)


class GroupSnapshot:
    """The parameter groups, their lists of parameters, and every setting."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = list(groups)
        self._sizes = list(map(len, map(_params, groups)))
        self._members = _flat(_params, groups)
        self._structure = _flat(_structure, groups)
        self._betas = _flat(_betas, groups)  # which may be lists, and change in place
        self.seen(groups)

    def seen(self, groups: Sequence[Group]) -> None:
        """Replace the known rates by those that the groups have now."""
        self._rates = [_rates(group) for group in groups]

    def unchanged(self, groups: Sequence[Group]) -> bool:
        """True if nothing but rates has changed."""
        return (
            _same(groups, self._groups)
            and list(map(len, map(_params, groups))) == self._sizes
            and _same(_flat(_params, groups), self._members)
            and _same(_flat(_structure, groups), self._structure)
            and _same(_flat(_betas, groups), self._betas)
        )

    def changed_rates(self, groups: Sequence[Group]) -> list[Group]:
        """Return groups whose rates changed, or may have: the value of a tensor is not read."""
        return [
            group
            for group, rates in zip(groups, self._rates, strict=True)
            if not all(map(is_, _rates(group), rates)) or isinstance(rates[0], Tensor)
        ]


class StateSnapshot:
    """The optimizer's state: its parameters, their dicts, and the tensors and step counts in those."""

    def __init__(
        self, states: Mapping[Any, State], counted: Sequence[State], tensors: Iterable[tuple[str, list[State]]]
    ) -> None:
        self._keys, self._dicts = list(states), list(states.values())
        self._counted = counted
        self._tensors = [(itemgetter(key), held) for key, held in tensors]
        self._ids = [list(map(id, map(get, held))) for get, held in self._tensors]
        self._dead: list[Any] = []  # while it is empty, no id can be another tensor's
        self._refs = [weakref.ref(t, self._dead.append) for get, held in self._tensors for t in map(get, held)]
        self.steps: list[Any] = list(map(_step, counted))

    def unchanged(self, states: Mapping[Any, State]) -> bool:
        """True if nothing but the values of state tensors has changed."""
        return (
            _same(list(states), self._keys)
            and _same(states.values(), self._dicts)
            and _same(list(map(_step, self._counted)), self.steps)
            and [list(map(id, map(get, held))) for get, held in self._tensors] == self._ids
            and not self._dead
        )


class TensorSnapshot:
    """Parameters and gradients: all but their values, and but the addresses of gradients."""

    def __init__(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        self._addresses = list(map(torch.Tensor.data_ptr, params))
        self._params_alike, self._grads_alike = _alike(params), _alike(grads)

    def unchanged(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> bool:
        """True if the parameters have the same traits and addresses, and the gradients the same traits."""
        return (
            self._grads_alike(*grads)
            and self._params_alike(*params)
            and list(map(torch.Tensor.data_ptr, params)) == self._addresses
        )


def _alike(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Return a function: True if other tensors have the same type, dtype, device, shape, strides and requires_grad.

    It asks torch's C++ function first, and compares in Python if that says no, which may have other reasons.
    """
    known, alike = list(map(_traits, tensors)), torch_private.alike(tensors)
    return lambda *now: alike(*now) or list(map(_traits, now)) == known


def _traits(tensor: Tensor | None) -> object:
    if tensor is None or tensor.layout != torch.strided:
        return None
    return (
        type(tensor),
        tensor.dtype,
        tensor.device,
        tensor.requires_grad,
        tensor.shape,
        tensor.stride(),
        tensor.is_neg(),
    )


def _flat(get: Callable[[Group], Iterable[Any]], groups: Iterable[Group]) -> list[Any]:
    return list(chain.from_iterable(map(get, groups)))


def _same(now: Any, then: Sequence[Any]) -> bool:
    return len(now) == len(then) and all(map(is_, now, then))
