"""Allocation of state beside its parameter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lionbits_reference.spec import TensorSpec

from . import huge_pages

#: Elements of the largest momentum that shares memory.
SMALL = 1024


def zeros(wanted: Sequence[Mapping[str, TensorSpec]], device: torch.device) -> list[dict[str, Tensor]]:
    """Return zeroed state tensors on the device for each of the specs.

    On the CPU the float32 momentum of small parameters of one shape is one tensor, of which each has a row, in the
    order of the specs: a backend can use that as a matrix. Copies of each would take longer than the update.
    """
    made = [
        {key: _zeros(spec.shape, spec.dtype, device) for key, spec in specs.items() if key != "exp_avg"}
        for specs in wanted
    ]
    alike: dict[TensorSpec, list[int]] = {}
    for j, specs in enumerate(wanted):
        if "exp_avg" in specs:
            alike.setdefault(specs["exp_avg"], []).append(j)
    for (shape, dtype), places in alike.items():
        together = device.type == "cpu" and 0 < torch.Size(shape).numel() <= SMALL
        for some in [places] if together else [[j] for j in places]:
            memory = _zeros((len(some), *shape), dtype, device)
            for j, tensor in zip(some, memory.unbind(), strict=True):
                made[j]["exp_avg"] = tensor
    return made


def apart(states: Mapping[Any, Any]) -> defaultdict[Any, Any]:
    """Return states in which no tensor is a row of a larger one: pickling a row would save the whole tensor."""
    copies: defaultdict[Any, Any] = defaultdict(dict, states)
    for key, held in states.items():
        if isinstance(key, Tensor):  # others' notes are theirs
            copies[key] = {name: _apart(value) for name, value in held.items()}
    return copies


def _apart(value: Any) -> Any:
    may_be_row = type(value) is Tensor and value.layout == torch.strided and value.device.type == "cpu"
    is_row = may_be_row and value.numel() <= SMALL
    return value.clone() if is_row and value.untyped_storage().nbytes() > value.nbytes else value


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    empty = torch.empty(shape, dtype=dtype, device=device)
    return (huge_pages.ask(empty) if device.type == "cpu" else empty).zero_()
