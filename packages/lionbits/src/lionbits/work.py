"""One step, from parameter groups to launches: nothing waits on the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lionbits_reference import clipping, formats
from lionbits_reference.spec import Backend, Batch, Hyper, Plan, TensorSpec, binary64

from . import counts, factors, groups, options, residual, shards, states
from .interrupts import uninterrupted
from .paging import Movement, Pager
from .paging.pages import moving
from .scalars import Numbers

Group = dict[str, Any]
State = dict[str, Any]

#: Skipped elements, int64[1]: of each device, and of tensors that lie over these ranks, those that are here.
Counts = dict[tuple[torch.device, "shards.Spread | None"], Tensor]


class Launch(NamedTuple):
    """What tensors must share to be updated by one call of a backend.

    The last three are nothing to the backend: they say what is done around the call.
    """

    plan: Plan
    hyper: Hyper
    device: torch.device  # where the call runs
    home: torch.device  # where the parameters are
    cautious: str | None
    raises: bool
    spread: shards.Spread | None


class Member(NamedTuple):
    """A parameter that takes part."""

    param: Tensor
    group: Group
    position: int

    @property
    def here(self) -> Tensor:
        """The parameter, or what of it is on this rank."""
        return shards.here(self.param)


@dataclass(eq=False)
class Work:
    """The members of one launch, their slots and their numbers. Step after step, until anything else changes.

    Outside a step it keeps no gradient alive, and of state and parameters only the dicts and Parameters that users see,
    and local parts of these.
    """

    launch: Launch
    members: list[Member] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # updates of each when this was prepared
    batch: Batch = field(default_factory=Batch)
    widened: list[shards.Widened] = field(default_factory=list)
    numbers: Numbers = field(init=False)
    numel: Tensor | None = None  # int64[k], for caution
    clips: bool = False

    def state_tensors(self) -> Iterator[tuple[str, list[State]]]:
        """Names of the state tensors that a step reads and writes, and whose state has them."""
        for key in self.launch.plan.state_spec(()):
            yield key, self.states
        pairs = zip(self.members, self.states, strict=True)
        yield "grad_norms", [state for member, state in pairs if factors.keeps_norms(member.group)]


def collect(
    param_groups: Sequence[Group], held: Mapping[Tensor, State], movement: Movement, first: int = 0
) -> list[Work]:
    """Sort every parameter that has a gradient into launches. Checks all and changes nothing.

    Args:
        param_groups, held: groups and state of the optimizer.
        movement: says where parameters are updated, and in which format codes are.
        first: position of the first parameter, where these groups are a part of the optimizer's.

    Raises:
        TypeError, ValueError, RuntimeError: a setting, gradient or state that cannot be served, named.
    """
    works: dict[Launch, Work] = {}
    groups.check_once(param_groups)
    position = first
    for group in param_groups:
        options.check(group)
        hyper = Hyper.of(group["betas"], group["seed"], group["rounding"])
        for param in group["params"]:
            if param.grad is not None:
                grad = _checked_gradient(param)
                plan = options.plan(group, param, grad.dtype)
                shards.check_settings(group, plan, param)
                state = held.get(param)
                devices = movement.pager.reaches(param.device)
                states.check(plan, shards.here(param), state, devices, norms=factors.keeps_norms(group))
                movement.formats.check(plan.format.name, param, state or {})
                device, raises = devices[0], group["nonfinite"] == "raise"
                launch = Launch(plan, hyper, device, param.device, group["cautious"], raises, shards.spread(param))
                works.setdefault(launch, Work(launch)).members.append(Member(param, group, position))
            position += 1
    return list(works.values())


def learning(param_groups: Sequence[Group]) -> list[tuple[Plan, Member]]:
    """Every parameter that has a gradient, or may come to have one."""
    members = [(group, param) for group in param_groups for param in group["params"]]
    return [
        (options.plan(group, param, param.dtype), Member(param, group, position))
        for position, (group, param) in enumerate(members)
        if param.requires_grad or param.grad is not None
    ]


@uninterrupted
def allocate(members: Sequence[tuple[Plan, Member]], held: MutableMapping[Tensor, State], movement: Movement) -> None:
    """Create state that is not there yet. Where memory fails nothing has changed.

    Args:
        members: parameters and their plans.
        held: the state of the optimizer, checked. What others keep in it stays.
        movement: that places state.
    """
    fresh = [states.fresh(held.get(m.param)) for _, m in members]
    missing = [_missing_specs(plan, m.here, held.get(m.param) or {}) for plan, m in members]
    wanted = [(m, specs) for (_, m), specs in zip(members, missing, strict=True) if specs]
    made = movement.residence.allocate([(m.param.device, specs) for m, specs in wanted])
    beside = [_state_beside(plan, m, held.get(m.param), movement.pager) for plan, m in members]
    for (_, m), is_fresh in zip(members, fresh, strict=True):
        if is_fresh:
            held.setdefault(m.param, {}).update(step=counts.tensor(0))
    for (m, _), tensors in zip(wanted, made, strict=True):
        held[m.param].update(tensors)
    for (_, m), tensors in zip(members, beside, strict=True):
        held[m.param].update(tensors)
    movement.residence.settle_in([(m.param.device, held[m.param], moving(plan)) for plan, m in members])
    for plan, m in members:
        movement.formats.note(plan.format, held[m.param])
    groups.tell_of_wide_momentum([(m.group, m.param) for (_, m), new in zip(members, fresh, strict=True) if new])


def prepare(works: Sequence[Work], held: MutableMapping[Tensor, State], movement: Movement) -> None:
    """Create state that is not there yet, and fill in slots and numbers. Where memory fails nothing has changed.

    A rest that the plan has no use for goes: float32 parameters get it, others are what they are.

    Raises:
        ValueError: a rest belongs to other values than the parameter's.
    """
    members = [(w.launch.plan, m) for w in works for m in w.members]
    stale = [(plan, m) for plan, m in members if states.REST in held.get(m.param, {})]
    stale = [(plan, m) for plan, m in stale if plan.param_rounding != "compensated"]
    whole = [residual.weights(plan, m.here, held[m.param]) for plan, m in stale]
    allocate(members, held, movement)
    for (_, m), weights in zip(stale, whole, strict=True):
        if weights is not None:
            m.here.copy_(weights)
        del held[m.param][states.REST]
    for w in works:
        _fill(w, held)


def _fill(w: Work, held: Mapping[Tensor, State]) -> None:
    plan, members = w.launch.plan, w.members
    w.states = [held[m.param] for m in members]
    slots = [
        shards.slot(plan, m.param, _gradient(m.param), state, m.position)
        for m, state in zip(members, w.states, strict=True)
    ]
    w.widened = [slot for slot in slots if isinstance(slot, shards.Widened)]
    w.batch = Batch(slot.slot if isinstance(slot, shards.Widened) else slot for slot in slots)
    w.counts = [counts.read(state, "state") for state in w.states]
    w.numbers = Numbers([m.group for m in members], w.counts, w.launch.device)
    w.clips = any(factors.clips(m.group) for m in members)
    if plan.caution == "mask":
        w.numel = w.numbers.upload([m.param.numel() for m in members], torch.int64)


def _missing_specs(plan: Plan, param: Tensor, state: State) -> dict[str, TensorSpec]:
    specs = plan.state_spec(param.shape)
    return {key: specs[key] for key in moving(plan) if key not in state}


def _state_beside(plan: Plan, member: Member, state: State | None, pager: Pager) -> State:
    """State that is missing, or not there, and that stays where the update runs however the rest is paged."""
    there, device = state or {}, pager.computes_on(member.param.device)
    beside: State = {}
    if plan.format.tensor_wise:
        scale = there.get("exp_avg_scale")
        if scale is None:
            beside["exp_avg_scale"] = torch.zeros(1, 1, dtype=torch.float32, device=device)
        elif scale.device != device:
            beside["exp_avg_scale"] = scale.to(device)
    if factors.keeps_norms(member.group) and "grad_norms" not in there:
        beside["grad_norms"] = torch.zeros(clipping.HISTORY, dtype=torch.float32, device=device)
    return beside


def run(work: Work, backend: Backend, movement: Movement, loss_scale: Tensor | None, skipped: Tensor) -> None:
    """Update the members, whose slots have gradients and whose step is counted.

    Args:
        work: what to do.
        backend: who does it.
        movement: who brings the state.
        loss_scale: divides the gradients, or None.
        skipped: int64[1] where the call runs; the elements that are skipped are added to it.
    """
    plan, hyper, device, *_ = work.launch
    unscale = None
    if loss_scale is not None:
        unscale = binary64(loss_scale.to(device)).reciprocal().float().reshape(()).to(device)
    scalars = work.numbers.scalars(skipped, unscale)
    for part in work.widened:
        part.bring()
    if work.clips:
        scalars = factors.with_clipping(work, unscale, scalars)
    if plan.format.tensor_wise:
        scalars = factors.with_absmax(work, backend, movement, scalars)
    if plan.caution == "mask":
        scalars = factors.with_caution(work, backend, movement, scalars)
    for slots, at in movement.parts(plan, work.batch, writes=True):
        backend.step(plan, slots, hyper, scalars.part(at))
    if scalars.absmax is not None:
        for state, scale in zip(work.states, formats.block_scale(scalars.absmax, plan.format), strict=True):
            state["exp_avg_scale"].copy_(scale)
    if work.widened:
        movement.settle()
    for part in work.widened:
        part.take_back()


def check_momentum(plan: Plan, param: Tensor, state: State, movement: Movement) -> None:
    """Refuse state whose momentum cannot be decoded.

    Raises:
        ValueError: naming what was expected and what is there.
    """
    specs = plan.format.momentum_spec(shards.here(param).shape)
    for key in specs:
        if isinstance(state.get(key), Tensor) and not states.readable(state[key]):
            where = f"state of a parameter of shape {tuple(param.shape)}"
            has = f"{key} of layout {state[key].layout} on {state[key].device}"
            raise ValueError(f"{where} has {has}; it must be a strided tensor that holds values.")
    states.check_form(specs, param, state)
    movement.formats.check(plan.format.name, param, state)


def _gradient(param: Tensor) -> Tensor:
    grad = param.grad
    assert grad is not None
    return grad


def _checked_gradient(param: Tensor) -> Tensor:
    grad = _gradient(param)
    where = f"the gradient of a parameter of shape {tuple(param.shape)}"
    if grad.layout != torch.strided:
        raise RuntimeError(f"lionbits does not support sparse gradients: {where} is {grad.layout}. Use sparse=False.")
    if grad.device != param.device:
        raise RuntimeError(f"{where} is on {grad.device}, the parameter on {param.device}; both must be on one device.")
    shards.check_gradient(param, grad)
    return grad
