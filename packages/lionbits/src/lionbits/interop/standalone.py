"""Optimizers made of a state dict alone, over parameters that have a shape and no memory: for files without a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import Parameter

from lionbits.checkpoint import form
from lionbits.optimizer import Lion
from lionbits.options import Bits

from .imported import ImportedStateDict, groups_of, states_of, tensor
from .lion import import_


def restored(reading: ImportedStateDict, optim_bits: Bits) -> Lion:
    """A Lion that holds what was read, with momentum of ``optim_bits`` and the settings that the reading has."""
    shapes = {key: held.shape for key, held in reading.held.items()}
    optimizer = Lion([_members(group, shapes) for group in reading.groups], optim_bits=optim_bits)
    optimizer.load_state_dict(import_(reading, optimizer))
    return optimizer


def revived(state_dict: Mapping[str, Any]) -> Lion:
    """Return the Lion that saved one of lionbits' state dicts.

    Raises:
        TypeError, ValueError: it is damaged, or its codes do not tell the shapes of the parameters.
    """
    groups = groups_of(state_dict)
    bits = {key: group.get("optim_bits", 32) for group in groups for key in group["params"]}
    shapes = {key: _shape(key, state, bits[key]) for key, state in states_of(state_dict)}
    own = ("params", "param_names", form.VERSION_KEY)
    settings = [{name: value for name, value in group.items() if name not in own} for group in groups]
    members = [{**kept, **_members(group, shapes)} for kept, group in zip(settings, groups, strict=True)]
    optimizer = Lion(members, seed=groups[0].get("seed", 0) if groups else 0)
    optimizer.load_state_dict(state_dict)
    return optimizer


def _members(group: Mapping[str, Any], shapes: Mapping[Any, torch.Size]) -> dict[str, Any]:
    """Return parameters, and their names if there are any. One without state is a number: its shape is not needed."""
    dtype = torch.bfloat16 if group.get("param_rounding", "nearest") != "nearest" else torch.float32
    params = [Parameter(torch.zeros((), dtype=dtype).expand(shapes.get(key, ()))) for key in group["params"]]
    names = group.get("param_names")
    return {"params": params if names is None else list(zip(names, params, strict=True))}


def _shape(key: Any, state: Mapping[str, Any], bits: int) -> torch.Size:
    if "exp_avg" in state or bits == 8:
        return tensor(key, state, "exp_avg" if "exp_avg" in state else "exp_avg_codes").shape
    if "param_residual" in state:
        residual = tensor(key, state, "param_residual")
        return residual.shape if residual.dtype != torch.uint8 else residual.shape[:-1]
    raise ValueError(
        f"state of parameter {key!r} has codes of {bits} bits, packed, which do not tell its shape. Load it into an "
        f"optimizer over the model's parameters, and use lionbits.interop.to_... on that."
    )
