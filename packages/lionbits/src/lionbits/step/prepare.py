"""Preparation of launch groups from parameter groups."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lionbits import advice, settings, sharding
from lionbits import groups as grouping
from lionbits.interrupts import uninterrupted
from lionbits.paging import Pager, Prefetcher, moving
from lionbits.state import counts, entries, residual
from lionbits_reference import clipping
from lionbits_reference.spec import Hyper, Plan, TensorSpec

from . import factors
from .launch import LaunchGroup, LaunchKey, ParamEntry
from .scalars import SlotScalars, upload
from .shared_blocks import SharedBlocks

Group = dict[str, Any]
State = dict[str, Any]


def collect(
    param_groups: Sequence[Group], held: Mapping[Tensor, State], prefetcher: Prefetcher, first: int = 0
) -> list[LaunchGroup]:
    """Sort every parameter that has a gradient into launch groups. Checks all and changes nothing.

    Args:
        param_groups, held: groups and state of the optimizer.
        prefetcher: says where parameters are updated, and in which format codes are.
        first: position of the first parameter, where these groups are a part of the optimizer's.

    Raises:
        TypeError, ValueError, RuntimeError: a setting, gradient or state that cannot be served, named.
    """
    found: dict[LaunchKey, LaunchGroup] = {}
    grouping.check_once(param_groups)
    position = first
    for group in param_groups:
        settings.check(group)
        _check_real(group["params"])
        hyper = Hyper.of(group["betas"], group["seed"], group["rounding"])
        for param in group["params"]:
            if param.grad is not None:
                grad = _checked_gradient(param)
                plan = settings.plan(group, param, grad.dtype)
                sharding.check_settings(group, plan, param)
                state = held.get(param)
                devices = prefetcher.pager.reaches(param.device)
                entries.check(plan, param, state, devices, norms=factors.keeps_norms(group))
                prefetcher.formats.check(plan.format.name, param, state or {})
                raises, shards = group["nonfinite"] == "raise", sharding.shard_group(param)
                shares = sharding.shares_blocks(param, plan.format)
                device = param.device if shares else devices[0]
                key = LaunchKey(plan, hyper, device, param.device, group["cautious"], raises, shards, shares)
                found.setdefault(key, LaunchGroup(key)).entries.append(ParamEntry(param, group, position))
            position += 1
    return list(found.values())


def learning(param_groups: Sequence[Group]) -> list[tuple[Plan, ParamEntry]]:
    """Return every parameter that has a gradient or may get one, with its plan; none on the meta device."""
    params = [(group, param) for group in param_groups for param in group["params"]]
    return [
        (settings.plan(group, param, param.dtype), ParamEntry(param, group, position))
        for position, (group, param) in enumerate(params)
        if (param.requires_grad or param.grad is not None) and not param.is_meta
    ]


@uninterrupted
def allocate(
    params: Sequence[tuple[Plan, ParamEntry]], held: MutableMapping[Tensor, State], prefetcher: Prefetcher
) -> None:
    """Create missing state. If memory is short nothing has changed.

    Args:
        params: parameters and their plans.
        held: the state of the optimizer, checked. What others keep in it stays.
        prefetcher: that places state.
    """
    fresh = [entries.fresh(held.get(entry.param)) for _, entry in params]
    missing = [_missing_specs(plan, entry, held.get(entry.param) or {}) for plan, entry in params]
    wanted = [(entry, specs) for (_, entry), specs in zip(params, missing, strict=True) if specs]
    made = prefetcher.placement.allocate([(entry.param.device, specs) for entry, specs in wanted])
    colocated = [_colocated_state(plan, entry, held.get(entry.param), prefetcher.pager) for plan, entry in params]
    for (_, entry), is_fresh in zip(params, fresh, strict=True):
        if is_fresh:
            held.setdefault(entry.param, {}).update(step=counts.tensor(0))
    for (entry, _), tensors in zip(wanted, made, strict=True):
        held[entry.param].update(tensors)
    for (_, entry), tensors in zip(params, colocated, strict=True):
        held[entry.param].update(tensors)
    placed = [(entry.param.device, held[entry.param], _paged_keys(plan, entry)) for plan, entry in params]
    prefetcher.placement.settle_in(placed)
    for plan, entry in params:
        prefetcher.formats.note(plan.format, held[entry.param])
    advice.on_wide_momentum([(entry.group, entry.param) for (_, entry), new in zip(params, fresh, strict=True) if new])


def prepare(
    launch_groups: Sequence[LaunchGroup],
    grads: Sequence[Tensor],
    held: MutableMapping[Tensor, State],
    prefetcher: Prefetcher,
) -> None:
    """Create missing state, and let backends prepare. If memory is short nothing has changed.

    A residual that the plan does not use is removed: float32 parameters are completed by it, others stay as they are.

    Args:
        launch_groups: with their backends.
        grads: of all their parameters; of a shard, the local tensor.
        held: the state of the optimizer, checked.
        prefetcher: that places state.

    Raises:
        ValueError: a residual belongs to other values than the parameter's.
    """
    params = [(group.key.plan, entry) for group in launch_groups for entry in group.entries]
    stale = [(plan, entry) for plan, entry in params if entries.RESIDUAL in held.get(entry.param, {})]
    stale = [(plan, entry) for plan, entry in stale if plan.param_rounding != "compensated"]
    whole = [residual.weights(plan, entry.local, held[entry.param]) for plan, entry in stale]
    allocate(params, held, prefetcher)
    for (_, entry), weights in zip(stale, whole, strict=True):
        if weights is not None:
            entry.local.copy_(weights)
        del held[entry.param][entries.RESIDUAL]
    at = 0
    for group in launch_groups:
        own, at = grads[at : at + len(group.entries)], at + len(group.entries)
        _fill(group, own, held, prefetcher)


def _fill(group: LaunchGroup, grads: Sequence[Tensor], held: Mapping[Tensor, State], prefetcher: Prefetcher) -> None:
    plan = group.key.plan
    group.groups = [entry.group for entry in group.entries]
    group.states = [held[entry.param] for entry in group.entries]
    found = [
        sharding.slot(plan, entry.param, state, entry.position)
        for entry, state in zip(group.entries, group.states, strict=True)
    ]
    group.padded = {j: slot for j, slot in enumerate(found) if isinstance(slot, sharding.PaddedShard)}
    slots = [slot.slot if isinstance(slot, sharding.PaddedShard) else slot for slot in found]
    grads = group.with_padding(grads)
    group.counts = [counts.read(state, "state") for state in group.states]
    group.scalars = SlotScalars(group.groups, group.counts, group.key.device)
    device = group.key.device
    if any(map(factors.clips, group.groups)):
        clipped = group.groups, group.states
        group.clipping = factors.Clipping(*clipped, device, plan.nonfinite, group.key.shard_group)
    if plan.caution == "mask":
        group.numel = upload([entry.param.numel() for entry in group.entries], torch.int64, device)
    if group.key.shares_blocks:
        runs = [run for entry in group.entries if (run := sharding.run_of(entry.param)) is not None]
        group.calls = SharedBlocks(group.backend, plan, slots, runs, grads, group.key.shard_group)
    else:
        group.calls = prefetcher.prepare(group.backend, plan, slots, grads)


def _paged_keys(plan: Plan, entry: ParamEntry) -> list[str]:
    """Return names of state that may be paged. That of parameters whose blocks ranks share stays on the device."""
    return [] if sharding.shares_blocks(entry.param, plan.format) else moving(plan)


def _missing_specs(plan: Plan, entry: ParamEntry, state: State) -> dict[str, TensorSpec]:
    specs = sharding.state_spec(plan, entry.param)
    return {key: specs[key] for key in _paged_keys(plan, entry) if key not in state}


def _colocated_state(plan: Plan, entry: ParamEntry, state: State | None, pager: Pager) -> State:
    """Return state that stays where the update runs even if the rest is paged, as far as it is missing there."""
    there, paged = state or {}, _paged_keys(plan, entry)
    shares = sharding.shares_blocks(entry.param, plan.format)
    device = entry.param.device if shares else pager.computes_on(entry.param.device)
    made: State = {}
    for key, spec in sharding.state_spec(plan, entry.param).items():
        if key not in paged and key not in there:
            made[key] = torch.zeros(spec.shape, dtype=spec.dtype, device=device)
        elif key not in paged and there[key].device != device:
            made[key] = there[key].to(device)
    if factors.keeps_norms(entry.group) and "grad_norms" not in there:
        made["grad_norms"] = torch.zeros(clipping.HISTORY, dtype=torch.float32, device=device)
    return made


def check_momentum(plan: Plan, param: Tensor, state: State, prefetcher: Prefetcher) -> None:
    """Refuse state whose momentum cannot be decoded.

    Raises:
        ValueError: naming what was expected and what is there.
    """
    specs = {key: spec for key, spec in sharding.state_spec(plan, param).items() if key in entries.MOMENTUM}
    for key in specs:
        if isinstance(state.get(key), Tensor) and not entries.readable(state[key]):
            where = f"state of a parameter of shape {tuple(param.shape)}"
            has = f"{key} of layout {state[key].layout} on {state[key].device}"
            raise ValueError(f"{where} has {has}; it must be a strided tensor that holds values.")
    entries.check_form(specs, param, state)
    prefetcher.formats.check(plan.format.name, param, state)


def _check_real(params: Sequence[Tensor]) -> None:
    """Refuse a parameter that is to be trained and is still on the meta device, or was replaced there.

    Raises:
        RuntimeError: naming its shape.
    """
    for param in params:
        if param.is_meta and (param.requires_grad or param.grad is not None):
            raise RuntimeError(
                f"a parameter of shape {tuple(param.shape)} is on the meta device and holds no values. Call the "
                f"model's to_empty() and load or initialise its values before the step. Parameters that are no "
                f"DTensors are replaced by to_empty(): make the optimizer after it."
            )


def _checked_gradient(param: Tensor) -> Tensor:
    grad = param.grad
    assert grad is not None
    where = f"the gradient of a parameter of shape {tuple(param.shape)}"
    if grad.layout != torch.strided:
        raise RuntimeError(f"lionbits does not support sparse gradients: {where} is {grad.layout}. Use sparse=False.")
    if grad.device != param.device:
        raise RuntimeError(f"{where} is on {grad.device}, the parameter on {param.device}; both must be on one device.")
    sharding.check_gradient(param, grad)
    return grad
