"""State in another form: momentum of 32, 8, 4 or 2 bits, decoded and encoded again. Lossy, so only on request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lionbits_reference import backend as reference
from lionbits_reference.spec import checks

from . import checkpoint, options, qlion, shards
from .optimizer import Lion

#: Settings of a group that decide in which form a parameter's momentum is held.
FORM = (*checkpoint.FORMAT_KEYS, "min_8bit_size", *qlion.FORM)


def convert(state_dict: Mapping[str, Any], optimizer: Lion) -> dict[str, Any]:
    """The state dict with its momentum in the form that ``optimizer`` holds: then this one loads it.

    Momentum is decoded and rounded to nearest. Bits, format, block size and ``min_8bit_size`` are the optimizer's,
    group by group; steps, seed, what compensated parameters keep, and all other settings stay the checkpoint's. State
    that is in the right form already is not touched, so that converting there a second time changes nothing. Of a
    sharded optimizer each rank converts its part.

    Args:
        state_dict: of lionbits, of any form. It is not changed; the new one shares tensors that need no conversion.
        optimizer: over parameters of the same shapes in the same groups. It is not changed. The parameters' shapes come
            from it, as packed codes do not tell them.

    Raises:
        TypeError, ValueError: the state dict does not fit the optimizer, for another reason than its form; or that
            form has one scale for all parts of a sharded tensor.
    """
    checkpoint.check_mapping(state_dict)
    check_optimizer(optimizer)
    groups = optimizer.param_groups
    saved = checkpoint.complete_groups(groups, state_dict)
    formed = [_reformed(there, here) for there, here in zip(saved, groups, strict=True)]
    goal = dict(checkpoint.owners(groups, formed))
    states = dict(state_dict["state"])
    for key, param, group, state in checkpoint.read_states(groups, saved, state_dict):
        _, new_group = goal[key]
        states[key] = checkpoint.published(new_group, param, _converted(state, param, group, new_group))
    return {**state_dict, "state": states, "param_groups": formed}


def check_optimizer(optimizer: object) -> None:
    """Refuse what is no optimizer of this family.

    Raises:
        TypeError.
    """
    if not isinstance(optimizer, Lion):
        hint = "Make one over the parameters first."
        raise checks.refusal(TypeError, "optimizer", optimizer, "must be an optimizer of lionbits", hint)


def encoded(group: Mapping[str, Any], param: Tensor, momentum: Tensor) -> dict[str, Tensor]:
    """State tensors that hold ``momentum`` in the form that the group's settings give this parameter.

    Args:
        group: settings, complete.
        param: its shape and dtype count.
        momentum: float32 of the parameter's shape; rounded to nearest. The result lies on its device and shares
            no memory with it.
    """
    return reference.encode(options.plan(group, param, param.dtype).format, momentum)


def _reformed(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """A saved group with settings of form as ours has them."""
    kept = {key: value for key, value in saved.items() if key not in FORM}
    form = {key: ours[key] for key in FORM if key in ours}
    return {**kept, **form, checkpoint.VERSION_KEY: checkpoint.VERSION}


def _converted(
    state: dict[str, Any], param: Tensor, group: Mapping[str, Any], new_group: Mapping[str, Any]
) -> dict[str, Any]:
    here, there = (options.plan(settings, param, param.dtype).format for settings in (group, new_group))
    if here == there or not state:
        return state
    if there.tensor_wise and shards.spread(param) is not None:
        hint = "Convert a full state dict on one process."
        raise checks.refusal(ValueError, "block_wise", False, "has a scale that no part of a tensor tells", hint)
    shape = shards.here(param).shape
    beside = {key: value for key, value in state.items() if key not in here.momentum_spec(shape)}
    return {**beside, **encoded(new_group, param, reference.decode(here, state, shape))}
