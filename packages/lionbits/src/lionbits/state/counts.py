"""The number of updates that a parameter has had: ``step`` in its state, int64, 0-d, on the CPU.

It is a tensor as in torch's optimizers, so that tools which fill tensors in place, or call ``cpu()`` on each value of a
state, treat it right. A step counts all parameters in one addition: their counts are views of one vector.
"""

from __future__ import annotations

import numbers
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lionbits_reference.spec import checks

State = dict[str, Any]

#: Key of the count in a state.
KEY = "step"


def tensor(count: int) -> Tensor:
    """Return a count as a state holds it: int64, 0-d, on the CPU."""
    return torch.tensor(count, dtype=torch.int64, device="cpu")


def read(state: Mapping[str, Any], whose: str) -> int:
    """Return the number of updates in a state.

    Args:
        state: with an int, a whole float, or a tensor of one such number on any device.
        whose: begins the message of an error, such as ``"state of parameter 3"``.

    Raises:
        ValueError: it says none, or no whole number in 0..2^62-1.
    """
    if KEY not in state:
        raise ValueError(f"{whose} has no 'step', only {sorted(map(str, state))}: not lionbits state.")
    step = state[KEY]
    value = _number(step) if isinstance(step, Tensor) else step
    if type(value) is int and 0 <= value < 2**62:
        return value
    whole = isinstance(value, numbers.Integral) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not 0 <= int(value) < 2**62:
        raise ValueError(f"{whose} has step={checks.shown(step)}; it must be an int >= 0 that int64 holds.")
    return int(value)


def _number(step: Tensor) -> Any:
    """Return the number in a readable tensor of one element, else None."""
    if step.layout != torch.strided or step.is_meta or step.is_nested or step.numel() != 1:
        return None
    return step.item()


def in_tensors(states: Mapping[Any, Any]) -> None:
    """Replace every count that is an int by a tensor: it was set by hand, or comes from an old pickle."""
    for param, state in states.items():
        if isinstance(param, Tensor) and isinstance(state.get(KEY), numbers.Integral):
            state[KEY] = tensor(int(state[KEY]))


def apart(states: Mapping[Any, Any]) -> defaultdict[Any, Any]:
    """States whose counts are tensors of their own: to be pickled, as a view takes all of its vector along."""
    copies: defaultdict[Any, Any] = defaultdict(dict, states)
    for param, state in states.items():
        if isinstance(param, Tensor) and type(state.get(KEY)) is Tensor and state[KEY].layout == torch.strided:
            copies[param] = {**state, KEY: state[KEY].clone()}
    return copies


class Counts:
    """The counts of some states, as views of one vector.

    Args:
        states: whose counts are replaced by these views.
        values: the counts.
    """

    def __init__(self, states: Sequence[State], values: Sequence[int]) -> None:
        self._vector = torch.tensor(values, dtype=torch.int64, device="cpu")
        self._known = self._vector.clone()
        self._views = list(self._vector.unbind())
        self._addresses = list(map(Tensor.data_ptr, self._views))
        self._states = states
        for state, view in zip(states, self._views, strict=True):
            state[KEY] = view

    def unchanged(self) -> bool:
        """True if no count was changed in place. A tensor that replaced one in a state is not detected here."""
        return torch.equal(self._vector, self._known) and list(map(Tensor.data_ptr, self._views)) == self._addresses

    def add_one(self) -> None:
        """Count one update of each parameter."""
        self._vector.add_(1)
        self._known.add_(1)

    def set(self, values: Sequence[int]) -> None:
        """Set the counts, except for a state whose count was changed by hand since."""
        pairs = zip(self._states, self._views, self._vector.tolist(), self._known.tolist(), values, strict=True)
        counts = [
            value if state.get(KEY) is view and here == known else here for state, view, here, known, value in pairs
        ]
        self._known.copy_(torch.tensor(counts, dtype=torch.int64, device="cpu"))
        self._vector.copy_(self._known)
