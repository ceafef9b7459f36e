"""The form of a checkpoint, and its examination before anything of it is taken over.

A checkpoint is torch's own ``{"state", "param_groups"}``. Groups carry their settings and the seed, as torch
and its distributed checkpoints keep those, and ``lionbits_version`` beside them. ``torch.optim.Optimizer``
casts loaded state to the parameter's dtype, which would ruin codes and scales: so each parameter's state
crosses its ``load_state_dict`` sealed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lionbits_reference import clipping
from lionbits_reference.spec import checks

from . import options, work

VERSION = 1
VERSION_KEY = "lionbits_version"

_NO_NORMS = torch.zeros(clipping.HISTORY, dtype=torch.float32, device="cpu")
_NOT_SETTINGS = ("params", "param_names")
_FORMAT_KEYS = ("optim_bits", "state_format", "block_size", "block_wise")


class Sealed:
    """One parameter's state, opaque to torch's casting."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state


def stamp(_: object, state_dict: dict[str, Any]) -> None:
    """Write the version into every group of a fresh state dict; a hook of ``state_dict()``, the first to run."""
    for group in state_dict["param_groups"]:
        group[VERSION_KEY] = VERSION


def examine(groups: list[dict[str, Any]], state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict with groups completed and states sealed, for torch to load. Changes neither argument.

    Args:
        groups: of the optimizer that is to load.
        state_dict: what it was given.

    Raises:
        TypeError, ValueError: version, structure, settings, formats, shapes or dtypes do not fit; the message
            says which.
    """
    saved_groups = _checked_form(state_dict)
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
        if key in owner:
            param, group = owner[key]
            states[key] = Sealed(_examine_state(key, param, group, state))
        elif isinstance(key, int):
            raise ValueError(f"state_dict has state for parameter {key!r}, which none of its groups lists.")
        else:
            states[key] = state  # a note under a key of its own, as torch lets pass
    return {**state_dict, "state": states, "param_groups": completed}


def check_mapping(state_dict: object) -> None:
    """Refuse what is no mapping at all.

    Raises:
        TypeError.
    """
    if not isinstance(state_dict, Mapping):
        rule = "must be a dict as state_dict() returns it"
        raise checks.refusal(TypeError, f"state_dict of type {type(state_dict).__name__}", state_dict, rule)


def _checked_form(state_dict: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The groups of a state dict that has the form of one."""
    for key, kind in (("state", Mapping), ("param_groups", Sequence)):
        if key not in state_dict:
            raise ValueError(f"state_dict lacks {key!r}: pass what lionbits' state_dict() returned.")
        if not isinstance(state_dict[key], kind):
            raise TypeError(f"state_dict[{key!r}] is a {type(state_dict[key]).__name__}; it must be a {kind.__name__}.")
    groups: Sequence[Mapping[str, Any]] = state_dict["param_groups"]
    for i, group in enumerate(groups):
        if not isinstance(group, Mapping):
            raise TypeError(f"param_groups[{i}] of the state dict is a {type(group).__name__}; it must be a dict.")
        if "params" not in group:
            raise ValueError(f"param_groups[{i}] of the state dict lacks 'params'.")
    return groups


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
            f"param_groups[{i}] of the state dict holds momentum in {there}, "
            f"the optimizer in {here}. Build the optimizer with {asked}."
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
    plain["step"] = _checked_step(key, plain)
    plan = options.plan(group, param, param.dtype)
    try:
        work.check_state(plan, param, plain)
    except ValueError as error:
        raise ValueError(f"parameter {key!r}: {error}") from None
    norms = plain.get("grad_norms", _NO_NORMS)
    if not isinstance(norms, Tensor) or tuple(norms.shape) != _NO_NORMS.shape or norms.dtype != torch.float32:
        raise ValueError(
            f"state of parameter {key!r} has grad_norms={norms!r}; a float32 tensor of shape (100,) is needed."
            if not isinstance(norms, Tensor)
            else f"state of parameter {key!r} has grad_norms of {norms.dtype} and shape {tuple(norms.shape)}; "
            f"float32 of shape (100,) is needed."
        )
    unknown = plain.keys() - plan.state_spec(param.shape).keys() - {"step", "grad_norms"}
    if unknown:
        raise ValueError(f"state of parameter {key!r} has {sorted(map(str, unknown))}, which lionbits does not keep.")
    return plain


def _checked_step(key: Any, state: Mapping[str, Any]) -> int:
    if "step" not in state:
        raise ValueError(
            f"state of parameter {key!r} has no 'step', only {sorted(map(str, state))}: not lionbits state."
        )
    step = state["step"]
    if isinstance(step, Tensor) and step.numel() == 1:
        step = step.item()
    whole = isinstance(step, int) or (isinstance(step, float) and step.is_integer())
    if isinstance(step, bool) or not whole or step < 0:
        raise ValueError(f"state of parameter {key!r} has step={step!r}; it must be an int >= 0.")
    return int(step)
