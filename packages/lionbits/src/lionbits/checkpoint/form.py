"""The form of a checkpoint, and its check before anything of it is used.

A checkpoint is torch's own ``{"state", "param_groups"}``. Groups carry their settings and the seed, as torch
and its distributed checkpoints keep those, and ``lionbits_version`` beside them. ``torch.optim.Optimizer``
casts loaded state to the parameter's dtype, which would ruin codes and scales: so each parameter's state
crosses its ``load_state_dict`` opaque.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from lionbits import groups as grouping
from lionbits import paging, settings, sharding
from lionbits.state import entries, residual
from lionbits_reference.spec import FLOAT32, Backend, checks

from . import keeping, matching, validation
from .recognise import reader, recognise, second_moments

if TYPE_CHECKING:
    from lionbits.optimizer import Lion

#: Of the form of a state dict. Versions 1 and 2, of which shards of vectors kept float32, were never released.
VERSION = 3
VERSION_KEY = "lionbits_version"

#: Pattern of a text that was the number of a parameter.
_NUMBER = re.compile(r"\s*[-+]?\d+(\.\d*)?\s*")

_NOT_SETTINGS = ("params", "param_names")
FORMAT_KEYS = ("optim_bits", "state_format", "block_size", "block_wise")


class OpaqueState:
    """One parameter's state, opaque to torch's casting."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state


def reveal(states: MutableMapping[Any, Any]) -> None:
    """Put what was opaque in the place of the objects that wrapped it."""
    for param, held in states.items():
        if isinstance(held, OpaqueState):
            states[param] = held.state


def add_version(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Write the version into every group of a fresh state dict, and give all state the form of a checkpoint.

    A hook of ``state_dict()``, the first to run.
    """
    held, exported = state_dict["state"], cast("Lion", optimizer)._get_prefetcher().exported
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        saved.update({key: settings.plain(value) for key, value in saved.items()})
        saved[VERSION_KEY] = VERSION
        for param, key in zip(group["params"], saved["params"], strict=True):
            if held.get(key):
                state, held[key] = held[key], export_state(group, param, held[key])
                codes, carried = state.get("exp_avg_codes"), held[key].get("exp_avg_codes")
                if isinstance(codes, Tensor) and carried is not codes:
                    exported.note(settings.state_format(group), param, codes, carried)


def export_state(group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a parameter in the form of a checkpoint; codes that share bytes are copied, all else is not."""
    if entries.fresh(state):
        return dict(state)
    if not sharding.distributed(param):  # which asks for no plan, and for settings only where a byte may be divided
        codes = state.get("exp_avg_codes")
        joined = isinstance(codes, Tensor) and codes.shape[:1] != param.shape[:1]
        return sharding.to_carried(settings.state_format(group) if joined else FLOAT32, param, state)
    plan = settings.plan(group, param, param.dtype)
    specs = entries.whole_specs(plan, param, state)
    return sharding.as_dtensors(plan.format, param, specs, sharding.to_carried(plan.format, param, state))


def examine(groups: list[dict[str, Any]], state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict with groups completed and states opaque, for torch to load. Changes neither argument.

    Args:
        groups: of the optimizer that is to load.
        state_dict: what it was given.

    Raises:
        TypeError, ValueError: version, structure, settings, formats, shapes or dtypes do not fit; the message
            says which.
    """
    completed = complete_groups(groups, state_dict)
    for i, (here, there) in enumerate(zip(groups, completed, strict=True)):
        _check_format(i, here, there)
    held: dict[Any, Any] = dict(state_dict["state"])
    held |= {key: OpaqueState(state) for key, _, _, state in read_states(groups, completed, state_dict)}
    return {**state_dict, "state": held, "param_groups": completed}


class StateLoader:
    """A hook of ``load_state_dict()`` that replaces the state dict's state with opaque copies.

    It is the last to run and the last that can refuse: what torch and the optimizer do afterwards raises nothing.

    Args:
        backend: that was asked for, or None.
        pager: says where state is kept.
    """

    def __init__(self, backend: Backend | None, pager: paging.Pager) -> None:
        self._backend, self._pager = backend, pager
        self._whole: list[tuple[Tensor, Tensor | None]] = []

    def __call__(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return what :func:`examine` returns, with copies of all state where the optimizer keeps it.

        Warns of settings that the optimizer was given and that the checkpoint replaces.

        Raises:
            TypeError, ValueError: as :func:`examine`; or no step could be taken with the settings of the checkpoint.
        """
        groups = optimizer.param_groups
        examined = examine(groups, state_dict)
        completed, held = examined["param_groups"], examined["state"]
        for group, values in zip(groups, completed, strict=True):
            grouping.check({**values, "params": group["params"]}, self._backend, self._pager)
        known = [(held[key], param, group) for key, (param, group) in owners(groups, completed) if key in held]
        validation.check_real([param for _, param, _ in known])
        weights = [_take_residual(opaque.state, param, group) for opaque, param, group in known]
        keeping.tell_of_replaced(cast("Lion", optimizer), completed)
        self._whole = [
            (sharding.local_tensor(param), whole) for (_, param, _), whole in zip(known, weights, strict=True)
        ]
        copies = paging.adopt(self._pager, [(param.device, opaque.state) for opaque, param, _ in known])
        for (opaque, _, _), copied in zip(known, copies, strict=True):
            opaque.state = copied
        return examined

    @torch.no_grad()
    def complete_weights(self) -> None:
        """Give float32 parameters the exact values of a bfloat16 run, of which the state kept a part."""
        for param, weights in self._whole:
            if weights is not None:
                param.copy_(weights)


def _take_residual(state: dict[str, Any], param: Tensor, group: Mapping[str, Any]) -> Tensor | None:
    """Take the residual out of a float32 parameter's state and return the weights it completes; None without one."""
    if entries.RESIDUAL not in state or param.dtype != torch.float32:
        return None
    weights = residual.weights(settings.plan(group, param, param.dtype), sharding.local_tensor(param), state)
    del state[entries.RESIDUAL]
    return weights


def complete_groups(groups: list[dict[str, Any]], state_dict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the checked groups of a state dict. What an older version did not write comes from the optimizer's groups.

    Raises:
        TypeError, ValueError: as :func:`examine`, but for formats, which may differ from ours.
    """
    saved_groups = checked_form(state_dict)
    check_origin(state_dict)
    saved_groups = matching.arranged(groups, saved_groups)
    checked_ids(state_dict, saved_groups)
    completed = [_complete(i, ours, saved) for i, (ours, saved) in enumerate(zip(groups, saved_groups, strict=True))]
    seeds = {group["seed"] for group in completed}
    if len(seeds) != 1:
        raise ValueError(f"param_groups of the state dict have seeds {sorted(seeds)}; an optimizer has one seed.")
    return completed


def read_states(
    groups: list[dict[str, Any]], completed: list[dict[str, Any]], state_dict: Mapping[str, Any]
) -> Iterator[tuple[Any, Tensor, dict[str, Any], dict[str, Any]]]:
    """Yield, for each parameter with state: its id in the state dict, our parameter, its saved settings, checked state.

    Notes under keys of their own are left out; torch lets them pass.

    Raises:
        TypeError, ValueError: a state is not what the saved settings say.
    """
    owner = dict(owners(groups, completed))
    ours = recognise(state_dict) == "lionbits"
    for key, state in state_dict["state"].items():
        if key in owner:
            param, group = owner[key]
            yield key, param, group, validation.examined(key, param, group, state, ours=ours)


def checked_ids(state_dict: Mapping[str, Any], saved_groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The ids of all parameters that the groups of a state dict list.

    Raises:
        ValueError: one is there twice; or as :func:`check_keys`.
    """
    ids = [key for group in saved_groups for key in group["params"]]
    if len(set(ids)) != len(ids):
        raise ValueError("param_groups of the state dict list a parameter twice.")
    check_keys(state_dict, ids)
    return ids


def check_keys(state_dict: Mapping[str, Any], ids: Sequence[Any]) -> None:
    """Refuse state that belongs to a parameter, by its key or by what it holds, under a key that no group lists.

    Notes under keys of their own pass.

    Args:
        state_dict: of any Lion.
        ids: of the parameters that its groups list.

    Raises:
        ValueError: naming the key.
    """
    known = set(ids)
    for key, state in state_dict["state"].items():
        if key in known:
            continue
        number = isinstance(key, (int, float)) or (isinstance(key, str) and _NUMBER.fullmatch(key))
        if number or (isinstance(state, Mapping) and state.keys() & entries.MOMENTUM):
            raise ValueError(
                f"state_dict has state for parameter {checks.shown(key)}, which none of its groups lists: they list "
                f"{checks.shown(list(ids[:5]))}, ... JSON and some tools turn numbers into texts; turn them back."
            )


def check_origin(state_dict: Mapping[str, Any]) -> None:
    """Refuse a state dict of another optimizer, which holds momentum otherwise.

    Raises:
        ValueError: naming the function that reads it.
    """
    peer = recognise(state_dict)
    if peer not in (None, "lionbits"):
        raise ValueError(
            f"state_dict has the form of {peer}, which holds momentum otherwise. "
            f"Load what {reader(str(peer))}(state_dict, optimizer) returns."
        )
    if second := second_moments(state_dict):
        raise ValueError(
            f"state_dict holds {sorted(second)}, as Adam does: Lion has no use for it, nor for Adam's momentum. Go on "
            f"with fresh state, and with the settings that lionbits.from_adamw(lr, weight_decay) makes of Adam's."
        )


def check_mapping(state_dict: object) -> None:
    """Refuse a state dict that is no mapping.

    Raises:
        TypeError.
    """
    if not isinstance(state_dict, Mapping):
        rule = "must be a dict as state_dict() returns it"
        raise checks.refusal(TypeError, "state_dict", state_dict, rule)


def checked_form(state_dict: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the groups of a state dict, having checked its form.

    Raises:
        TypeError, ValueError.
    """
    for key, kind in (("state", Mapping), ("param_groups", Sequence)):
        if key not in state_dict:
            raise ValueError(
                f"state_dict lacks {key!r}, it has {[*state_dict][:5]}: "
                f"pass {_one_within(state_dict) or 'what an optimizer returned from state_dict()'}."
            )
        if not isinstance(state_dict[key], kind):
            raise TypeError(f"state_dict[{key!r}] is a {type(state_dict[key]).__name__}; it must be a {kind.__name__}.")
    groups: Sequence[Mapping[str, Any]] = state_dict["param_groups"]
    for i, group in enumerate(groups):
        if not isinstance(group, Mapping):
            raise TypeError(f"param_groups[{i}] of the state dict is a {type(group).__name__}; it must be a dict.")
        if "params" not in group:
            raise ValueError(f"param_groups[{i}] of the state dict lacks 'params'.")
    groups = [matching.with_current_names(group) for group in groups]
    for i, group in enumerate(groups):
        _check_ids(i, group)
    return groups


def _one_within(checkpoint: Mapping[str, Any]) -> str:
    """Return the expression for an optimizer's state dict inside a larger checkpoint; empty if there is none."""
    for key, value in checkpoint.items():
        if isinstance(value, Mapping) and {"state", "param_groups"} <= value.keys():
            return f"state_dict[{key!r}], which is of an optimizer"
    return ""


def _check_ids(i: int, group: Mapping[str, Any]) -> None:
    """Refuse parameters that are not a list of numbers or names, or whose names are more or fewer than they are."""
    ids, names = group["params"], group.get("param_names")
    if not isinstance(ids, (list, tuple)) or not all(isinstance(key, (int, str)) for key in ids):
        raise TypeError(f"param_groups[{i}]['params'] of the state dict is no list of numbers or names.")
    listed = isinstance(names, (list, tuple)) and len(names) == len(ids)
    if names is not None and not (listed and all(isinstance(name, str) for name in names)):
        raise ValueError(f"param_groups[{i}] of the state dict has {len(ids)} parameters and param_names={names!r}.")


def _complete(i: int, group: dict[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    version = saved.get(VERSION_KEY, VERSION)
    if not isinstance(version, int) or version != VERSION:
        raise ValueError(
            f"param_groups[{i}][{VERSION_KEY!r}]={version!r}: this lionbits reads version {VERSION}. "
            f"Load the checkpoint with the lionbits that wrote it."
        )
    complete = {key: value for key, value in group.items() if key not in _NOT_SETTINGS}
    complete |= {key: value for key, value in saved.items() if key != VERSION_KEY}
    try:
        settings.check(complete)
        grouping.check_whole(complete)
    except (TypeError, ValueError) as error:
        raise type(error)(f"param_groups[{i}] of the state dict: {error}") from None
    return complete


def _check_format(i: int, group: dict[str, Any], saved: dict[str, Any]) -> None:
    here, there = settings.state_format(group), settings.state_format(saved)
    if here != there:
        asked = {key: saved[key] for key in FORMAT_KEYS}
        raise ValueError(
            f"param_groups[{i}] of the state dict holds momentum in {there}, "
            f"the optimizer in {here}. Build the optimizer with {asked}, "
            f"or load lionbits.convert(state_dict, optimizer)."
        )


def owners(
    groups: list[dict[str, Any]], saved: list[dict[str, Any]]
) -> Iterator[tuple[Any, tuple[Tensor, dict[str, Any]]]]:
    """Saved parameter id -> (our parameter, its group in ``saved``, which are groups of a state dict)."""
    for here, there in zip(groups, saved, strict=True):
        for key, param in zip(there["params"], here["params"], strict=True):
            yield key, (param, there)
