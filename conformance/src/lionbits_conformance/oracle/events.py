"""What may happen to an optimizer between two steps and must not change a bit: saving, copying, paging, moving.

Each takes the parameters, their optimizer, and what makes one like it, and returns those that go on. To the oracle
nothing happens.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

Trained = tuple[list[torch.nn.Parameter], Any]
Make = Callable[..., Any]  # an optimizer over parameters, as the one that an event is about was made


def saved(params: list[torch.nn.Parameter], optimizer: Any, make: Make, **paging: Any) -> Trained:
    """A checkpoint is loaded by an optimizer that is made as the first one was, paged or not."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    successor = make(params, **paging)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "load_state_dict takes settings", UserWarning)
        successor.load_state_dict(torch.load(file, weights_only=True))
    successor._skipped = optimizer._skipped  # a count of the object, not of the checkpoint
    return params, successor


def copied(params: list[torch.nn.Parameter], optimizer: Any, make: Make) -> Trained:
    """A deep copy of both goes on."""
    return copy.deepcopy((params, optimizer))


def pickled(params: list[torch.nn.Parameter], optimizer: Any, make: Make) -> Trained:
    """What is read from a pickle of both goes on."""
    read: Trained = pickle.loads(pickle.dumps((params, optimizer)))
    return read


def moved(params: list[torch.nn.Parameter], optimizer: Any, make: Make) -> Trained:
    """Storage of parameters and tensors of the state are replaced by copies."""
    for param in params:
        param.data = param.data.clone()
    for state in optimizer.state.values():
        state.update({key: value.clone() for key, value in state.items() if isinstance(value, Tensor)})
    return params, optimizer


#: By name.
EVENTS: dict[str, Callable[..., Trained]] = {
    "saved": saved,
    "paged": partial(saved, is_paged=True, page_budget=0),
    "copied": copied,
    "pickled": pickled,
    "moved": moved,
}
