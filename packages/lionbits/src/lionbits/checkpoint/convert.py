"""Conversion of saved state to other settings: other bits, compensated or not. It happens only on request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lionbits import groups, settings, sharding
from lionbits.state import entries, residual
from lionbits.step import factors
from lionbits_reference import backend as reference
from lionbits_reference.spec import checks

from . import form, keeping

if TYPE_CHECKING:
    from lionbits.optimizer import Lion

#: Settings of a group that decide in which form a parameter's momentum is held.
FORM = (*form.FORMAT_KEYS, "min_8bit_size", *settings.QLION)


def convert(state_dict: Mapping[str, Any], optimizer: Lion, keep: Iterable[str] = ()) -> dict[str, Any]:
    """The state dict with its momentum in the form that ``optimizer`` holds: then this one loads it.

    Momentum is decoded and rounded to nearest. Bits, format, block size and ``min_8bit_size`` are the optimizer's,
    group by group, and what ``keep`` names; steps and all other settings stay the checkpoint's. State that is in the
    right form already is not touched, so that converting there a second time changes nothing. Of a sharded optimizer
    each rank converts its part; all ranks have to call it, as vectors and short rows are put together first.

    Args:
        state_dict: of lionbits, of any form. It is not changed; the new one shares tensors that need no conversion.
        optimizer: over parameters of the same shapes in the same groups. It is not changed. The parameters' shapes come
            from it, as packed codes do not tell them.
        keep: names of more settings that are to be the optimizer's, such as ``["param_rounding", "lr"]``;
            ``optimizer.defaults`` names all. With ``param_rounding="compensated"`` compensation begins with what the
            parameters are; with another what it kept of bfloat16 parameters is left out. ``master_bits`` 24 becomes 32
            exactly, 32 becomes 24 rounded to nearest. A new ``percentile_clipping`` goes on with the history that is
            there, or begins one. With ``"lr"`` goes what a schedule noted as ``initial_lr``.

    Raises:
        TypeError, ValueError: the state dict does not fit the optimizer, for another reason than its form; that
            form has one scale for all parts of a sharded tensor; or ``keep`` names what is no setting of a group.
    """
    form.check_mapping(state_dict)
    groups.check_optimizer(optimizer)
    names = [*FORM, *keeping.checked(keep, optimizer)]
    ours = optimizer.param_groups
    saved = form.complete_groups(ours, state_dict)
    formed = [_reformed(there, here, names) for there, here in zip(saved, ours, strict=True)]
    goal = dict(form.owners(ours, formed))
    held = dict(state_dict["state"])
    for key, param, group, state in form.read_states(ours, saved, state_dict):
        _, new_group = goal[key]
        converted = _compensated(_converted(state, param, group, new_group), param, new_group)
        held[key] = form.export_state(new_group, param, converted)
    return {**state_dict, "state": held, "param_groups": formed}


def encoded(group: Mapping[str, Any], param: Tensor, momentum: Tensor) -> dict[str, Tensor]:
    """State tensors that hold ``momentum`` in the form that the group's settings give this parameter.

    Args:
        group: settings, complete.
        param: its shape and dtype count.
        momentum: float32 of the parameter's shape; rounded to nearest. The result lies on its device and shares
            no memory with it.
    """
    return reference.encode(settings.plan(group, param, param.dtype).format, momentum)


def _reformed(saved: Mapping[str, Any], ours: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return a saved group in which the named settings are those of our group."""
    return {**keeping.with_ours(saved, ours, names), form.VERSION_KEY: form.VERSION}


def _converted(
    state: dict[str, Any], param: Tensor, group: Mapping[str, Any], new_group: Mapping[str, Any]
) -> dict[str, Any]:
    here, there = (settings.plan(each, param, param.dtype).format for each in (group, new_group))
    if here == there or not state:
        return state
    if there.tensor_wise and sharding.shard_group(param) is not None:
        hint = "Convert a full state dict on one process."
        raise checks.refusal(ValueError, "block_wise", False, "has a scale that no part of a tensor tells", hint)
    beside = {key: value for key, value in state.items() if key not in here.momentum_spec(())}
    momentum = sharding.decode(reference.decode, here, param, state)
    if not sharding.shares_blocks(param, there):
        return {**beside, **encoded(new_group, param, momentum)}
    converted = encoded(new_group, param, sharding.whole(momentum, like=param))
    return {**beside, **sharding.cut(there, param, there.momentum_spec(param.shape), converted)}


def _compensated(state: dict[str, Any], param: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state with the residual that the group's settings ask for, and without norms that they do not use.

    Parameters of other dtypes than bfloat16 keep their residual.
    """
    plan = settings.plan(group, param, param.dtype)
    found = dict(state)
    if not factors.keeps_norms(group):
        found.pop(entries.NORMS, None)
    if plan.param_dtype != torch.bfloat16 or entries.fresh(found):
        return found
    kept = found.pop(entries.RESIDUAL, None)
    if plan.param_rounding == "compensated":
        if kept is None:
            kept = torch.zeros(sharding.local_tensor(param).shape, dtype=torch.int16, device=param.device)
        found[entries.RESIDUAL] = residual.resized(kept, plan.master_bits)
    return found
