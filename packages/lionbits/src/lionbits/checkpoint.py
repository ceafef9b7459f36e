"""The form of a checkpoint, and its examination before anything of it is taken over.

A checkpoint is torch's own ``{"state", "param_groups"}``. Groups carry their settings and the seed, as torch
and its distributed checkpoints keep those, and ``lionbits_version`` beside them. ``torch.optim.Optimizer``
casts loaded state to the parameter's dtype, which would ruin codes and scales: so each parameter's state
crosses its ``load_state_dict`` sealed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from . import options, work

VERSION = 1
VERSION_KEY = "lionbits_version"

_NOT_SETTINGS = ("params", "param_names")
_FORMAT_KEYS = ("optim_bits", "state_format", "block_size", "block_wise")


class Sealed:
    """One parameter's state, opaque to torch's casting."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state


def stamp(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Write the version into every group of a fresh state dict."""
    for group in state_dict["param_groups"]:
        group[VERSION_KEY] = VERSION
    return state_dict


def examine(groups: list[dict[str, Any]], state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict with groups completed and states sealed, for torch to load. Changes neither argument.

    Args:
        groups: of the optimizer that is to load.
        state_dict: what it was given.

    Raises:
        TypeError, ValueError: version, structure, settings, formats, shapes or dtypes do not fit; the message
            says which.
    """
    for key in ("state", "param_groups"):
        if not isinstance(state_dict, Mapping) or key not in state_dict:
            raise ValueError(f"state_dict lacks {key!r}: pass what lionbits' state_dict() returned.")
    saved_groups = state_dict["param_groups"]
    ours = [len(group["params"]) for group in groups]
    theirs = [len(group["params"]) for group in saved_groups]
    if ours != theirs:
        raise ValueError(
            f"loaded state dict has a different number of parameter groups or parameters: the optimizer's groups "
            f"hold {ours} parameters, the state dict's {theirs}. Build the optimizer over the same groups first."
        )
    completed = [_complete(i, ours, saved) for i, (ours, saved) in enumerate(zip(groups, saved_groups, strict=True))]
    seeds = {group["seed"] for group in completed}
    if len(seeds) != 1:
        raise ValueError(f"param_groups of the state dict have seeds {sorted(seeds)}; an optimizer has one seed.")
    owner = dict(_owners(groups, completed))
    states: dict[Any, Any] = {}
    for key, state in state_dict["state"].items():
        if key not in owner:
            raise ValueError(f"state_dict has state for parameter {key!r}, which none of its groups lists.")
        param, group = owner[key]
        states[key] = Sealed(_examine_state(key, param, group, state))
    return {**state_dict, "state": states, "param_groups": completed}


def _complete(i: int, group: dict[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved group with its version checked and what an older version did not write filled in from ours."""
    version = saved.get(VERSION_KEY, VERSION)
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise ValueError(
            f"param_groups[{i}][{VERSION_KEY!r}]={version!r}: this lionbits reads versions 1..{VERSION}. "
            f"Load the checkpoint with the lionbits that wrote it, or a newer one."
        )
    complete = {key: value for key, value in group.items() if key not in _NOT_SETTINGS}
    complete |= {key: value for key, value in saved.items() if key != VERSION_KEY}
    options.check(complete)
    here, there = options.state_format(group), options.state_format(complete)
    if here != there:
        asked = {key: complete[key] for key in _FORMAT_KEYS}
        raise ValueError(
            f"param_groups[{i}] of the state dict holds {there.name} momentum in blocks of {there.block_size}, "
            f"the optimizer's {here.name} in blocks of {here.block_size}. Build the optimizer with {asked}."
        )
    return complete


def _owners(
    groups: list[dict[str, Any]], saved: list[dict[str, Any]]
) -> Iterator[tuple[Any, tuple[Tensor, dict[str, Any]]]]:
    """Saved parameter id -> (our parameter, the settings that it will have)."""
    for here, there in zip(groups, saved, strict=True):
        for key, param in zip(there["params"], here["params"], strict=True):
            yield key, (param, there)


def _examine_state(key: Any, param: Tensor, group: dict[str, Any], state: Any) -> dict[str, Any]:
    if not isinstance(state, Mapping):
        raise TypeError(f"state of parameter {key!r} is a {type(state).__name__}; it must map names to tensors.")
    plain = dict(state)
    if not plain:
        return plain
    if "step" not in plain:
        raise ValueError(
            f"state of parameter {key!r} has no 'step', only {sorted(map(str, plain))}: not lionbits state."
        )
    step = plain["step"].item() if isinstance(plain["step"], Tensor) and plain["step"].numel() == 1 else plain["step"]
    if isinstance(step, bool) or not isinstance(step, (int, float)) or step != int(step) or step < 0:
        raise ValueError(f"state of parameter {key!r} has step={step!r}; it must be an int >= 0.")
    plain["step"] = int(step)
    try:
        work.check_state(options.plan(group, param, param.dtype), param, plain)
    except ValueError as error:
        raise ValueError(f"parameter {key!r}: {error}") from None
    norms = plain.get("grad_norms")
    if norms is not None and (tuple(norms.shape) != (100,) or norms.dtype != torch.float32):
        raise ValueError(
            f"state of parameter {key!r} has grad_norms of {norms.dtype} and shape "
            f"{tuple(norms.shape)}; float32 of shape (100,) is needed."
        )
    return plain
