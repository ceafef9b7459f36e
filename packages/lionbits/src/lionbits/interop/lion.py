"""Conversion from a decoded state dict to what ``load_state_dict`` takes, and from an optimizer to a decoded one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from lionbits import advice, settings, sharding
from lionbits.checkpoint import matching
from lionbits.checkpoint.convert import FORM, encoded
from lionbits.groups import check_optimizer
from lionbits.state import counts
from lionbits_reference.spec import checks

from .imported import DecodedState, ImportedStateDict

if TYPE_CHECKING:
    from lionbits.optimizer import Lion

#: Settings that change what a step does, and the values with which they change nothing.
_BEYOND_LION = {"cautious": None, "grad_clip": 0.0, "percentile_clipping": 100, "maximize": False}

#: Keys of a decoded group that are not settings to import: its parameters, and its format.
_OWN = ("params", "param_names", *FORM)


def import_(reading: ImportedStateDict, optimizer: Lion, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return a state dict for ``optimizer``, momentum in its formats, rounded to nearest. The optimizer is not changed.

    Args:
        reading: of a peer's state dict.
        optimizer: over the same parameters; it supplies shapes, formats, and settings that the peer does not have.
        names: of the peer's parameters, in its order; see :func:`matched`.

    Raises:
        TypeError, ValueError: groups, parameters or shapes do not fit.
    """
    check_optimizer(optimizer)
    saved = optimizer.state_dict()
    groups, states = [], {}
    matches = matched(reading, optimizer, names)
    _check_shapes(reading, optimizer, matches)  # before settings: names in a wrong order mix those up as well
    for group, packed, keys in zip(optimizer.param_groups, saved["param_groups"], matches, strict=True):
        complete = {**packed, **matching.common_settings(reading.groups, keys, without=_OWN)}
        settings.check(complete)
        groups.append(complete)
        for position, param, key in zip(packed["params"], group["params"], keys, strict=True):
            if key in reading.held:
                states[position] = _encoded(key, reading.held[key], param, complete)
    return {"state": states, "param_groups": groups}


def export(optimizer: Lion) -> ImportedStateDict:
    """Return the state that the optimizer holds, decoded on request, and all settings of its groups."""
    check_optimizer(optimizer)
    saved = optimizer.state_dict()
    held = {}
    for group, packed in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for key, param in zip(packed["params"], group["params"], strict=True):
            state = saved["state"].get(key)
            if state:
                held[key] = _decoded(optimizer, group, param, state)
    return ImportedStateDict(held, saved["param_groups"])


def _decoded(optimizer: Lion, group: Mapping[str, Any], param: torch.Tensor, state: Mapping[str, Any]) -> DecodedState:
    form = settings.plan(group, param, param.dtype).format
    decode = partial(_whole, optimizer, param)
    step = counts.read(state, f"state of a parameter of shape {tuple(param.shape)}")
    return DecodedState(param.shape, decode, str(form), form.quantised, step, state.get("grad_norms"), param.dtype)


def _whole(optimizer: Lion, param: torch.Tensor) -> torch.Tensor:
    """Return all of a parameter's momentum. For a sharded parameter this is a collective call."""
    momentum: Any = optimizer.momentum(param)
    whole: torch.Tensor = momentum.full_tensor() if sharding.distributed(momentum) else momentum
    return whole


def warn_of_losses(optimizer: Lion, carries: Mapping[str, object] = MappingProxyType({})) -> None:
    """Warn of settings and state that a peer cannot carry on.

    Args:
        optimizer: whose state is written.
        carries: settings beyond Lion's own that the peer has too, each with the value that it has a word for; ``...``:
            any.
    """
    lost = {
        f"{name}={group[name]!r}"
        for group in optimizer.param_groups
        for name, plain in _BEYOND_LION.items()
        if group[name] not in (plain, carries.get(name, plain)) and carries.get(name) is not ...
    }
    if any("param_residual" in state for state in optimizer.state.values()):
        lost.add("param_residual, what bfloat16 parameters are short of")
    if lost:
        message = f"the state dict leaves behind what its reader does not know: {', '.join(sorted(lost))}."
        advice.warn(message)


def matched(reading: ImportedStateDict, optimizer: Lion, names: Sequence[str] | None) -> list[list[Any]]:
    """Return, for each group of the optimizer, the peer's ids of its parameters.

    They are matched by name if both sides have names (the peer's may be given), and then groups may differ; else by
    position.

    By name where both sides have names (the peer's may be given), so that groups may differ; else by position.

    Raises:
        TypeError, ValueError: names are wanted and missing, or the two do not hold the same parameters.
    """
    own = [group.get("param_names") for group in optimizer.param_groups]
    if names is not None and None in own:
        hint = "Build the optimizer with model.named_parameters()."
        raise checks.refusal(ValueError, "names", list(names), "needs an optimizer whose parameters have names", hint)
    known = reading.names if names is None else list(names)
    if known is not None and None not in own:
        return matching.by_name([list(part or ()) for part in own], known, reading.ids)
    here = [len(group["params"]) for group in optimizer.param_groups]
    there = [len(group["params"]) for group in reading.groups]
    if here != there:
        raise ValueError(
            f"the state dict has a different number of parameter groups or parameters: the optimizer's groups hold "
            f"{here} parameters, the state dict's {there}. Build the optimizer over the same groups; or over "
            f"model.named_parameters(), grouped as you like, and pass names= in the state dict's order."
        )
    return [list(group["params"]) for group in reading.groups]


def _check_shapes(reading: ImportedStateDict, optimizer: Lion, matches: list[list[Any]]) -> None:
    for group, keys in zip(optimizer.param_groups, matches, strict=True):
        for param, key in zip(group["params"], keys, strict=True):
            if key in reading.held and reading.held[key].shape != param.shape:
                raise ValueError(
                    f"momentum of parameter {key!r} has shape {tuple(reading.held[key].shape)}, the optimizer's "
                    f"parameter {tuple(param.shape)}: the state dict is of another model, or its parameters are in "
                    f"another order. names= go in the order of its groups, one after the other."
                )


def _encoded(key: Any, held: DecodedState, param: torch.Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    plan = settings.plan(group, param, param.dtype)
    try:
        exp_avg = held.exp_avg()
    except ValueError as error:
        raise ValueError(f"parameter {key!r}: {error}") from None
    state: dict[str, Any] = {"step": counts.tensor(held.step), **encoded(group, param, exp_avg)}
    for name, spec in plan.state_spec(param.shape).items():
        if name not in state:  # what only ours keep, empty: the parameter is what it is
            state[name] = torch.zeros(spec.shape, dtype=spec.dtype, device=exp_avg.device)
    if held.grad_norms is not None and group["percentile_clipping"] < 100:
        state["grad_norms"] = held.grad_norms
    return sharding.carried_whole(plan.format, param, state)
