"""One step, from parameter groups to launches: nothing waits on the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lionbits_reference import clipping, formats
from lionbits_reference.spec import Backend, Batch, Hyper, Plan, TensorSpec

from . import factors, groups, options, shards
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


def collect(param_groups: Sequence[Group], states: Mapping[Tensor, State], pager: Pager, first: int = 0) -> list[Work]:
    """Sort every parameter that has a gradient into launches. Checks all and changes nothing.

    Args:
        param_groups, states: of the optimizer.
        pager: says where parameters are updated.
        first: position of the first parameter, where these groups are a part of the optimizer's.

    Raises:
        TypeError, ValueError, RuntimeError: a setting, gradient or state that cannot be served, named.
    """
    works: dict[Launch, Work] = {}
    position = first
    for group in param_groups:
        options.check(group)
        hyper = Hyper.of(group["betas"], group["seed"], group["rounding"])
        for param in group["params"]:
            if param.grad is not None and param.requires_grad:
                grad = _checked_gradient(param)
                plan = options.plan(group, param, grad.dtype)
                shards.check_settings(group, plan, param)
                check_state(plan, shards.here(param), states.get(param))
                device, raises = pager.computes_on(param.device), group["nonfinite"] == "raise"
                launch = Launch(plan, hyper, device, param.device, group["cautious"], raises, shards.spread(param))
                works.setdefault(launch, Work(launch)).members.append(Member(param, group, position))
            position += 1
    return list(works.values())


def learning(param_groups: Sequence[Group]) -> list[tuple[Plan, Member]]:
    """Every parameter that may come to have a gradient."""
    members = [(group, param) for group in param_groups for param in group["params"]]
    return [
        (options.plan(group, param, param.dtype), Member(param, group, position))
        for position, (group, param) in enumerate(members)
        if param.requires_grad
    ]


@uninterrupted
def allocate(members: Sequence[tuple[Plan, Member]], states: MutableMapping[Tensor, State], movement: Movement) -> None:
    """Create state that is not there yet. Where memory fails nothing has changed."""
    fresh = [(plan, m) for plan, m in members if not states.get(m.param)]
    pages = movement.residence.allocate([(m.param.device, _moving_specs(plan, m.here)) for plan, m in fresh])
    beside = [_state_beside(plan, m, states.get(m.param), movement.pager) for plan, m in members]
    for (_, m), tensors in zip(fresh, pages, strict=True):
        states[m.param] = {"step": 0, **tensors}
    for (_, m), tensors in zip(members, beside, strict=True):
        states[m.param].update(tensors)
    movement.residence.settle_in([(m.param.device, states[m.param], moving(plan)) for plan, m in members])
    groups.tell_of_wide_momentum([(m.group, m.param) for _, m in fresh])


def prepare(works: Sequence[Work], states: MutableMapping[Tensor, State], movement: Movement) -> None:
    """Create state that is not there yet, and fill in slots and numbers. Where memory fails nothing has changed."""
    allocate([(w.launch.plan, m) for w in works for m in w.members], states, movement)
    for w in works:
        plan, members = w.launch.plan, w.members
        w.states = [states[m.param] for m in members]
        slots = [
            shards.slot(plan, m.param, _gradient(m.param), state, m.position)
            for m, state in zip(members, w.states, strict=True)
        ]
        w.widened = [slot for slot in slots if isinstance(slot, shards.Widened)]
        w.batch = Batch(slot.slot if isinstance(slot, shards.Widened) else slot for slot in slots)
        w.numbers = Numbers([m.group for m in members], [state["step"] for state in w.states], w.launch.device)
        w.clips = any(factors.clips(m.group) for m in members)
        if plan.caution == "mask":
            w.numel = w.numbers.upload([m.param.numel() for m in members], torch.int64)


def _moving_specs(plan: Plan, param: Tensor) -> dict[str, TensorSpec]:
    specs = plan.state_spec(param.shape)
    return {key: specs[key] for key in moving(plan)}


def _state_beside(plan: Plan, member: Member, state: State | None, pager: Pager) -> State:
    """State that is missing, or not there, and that stays where the update runs however the rest is paged."""
    held, device = state or {}, pager.computes_on(member.param.device)
    beside: State = {}
    if plan.format.tensor_wise:
        scale = held.get("exp_avg_scale")
        if scale is None:
            beside["exp_avg_scale"] = torch.zeros(1, 1, dtype=torch.float32, device=device)
        elif scale.device != device:
            beside["exp_avg_scale"] = scale.to(device)
    if factors.keeps_norms(member.group) and "grad_norms" not in held:
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
    unscale = None if loss_scale is None else loss_scale.to(device).double().reciprocal().float().reshape(())
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


def check_state(plan: Plan, param: Tensor, state: State | None) -> None:
    """Refuse state that is not what the plan asks for (settings were changed under a running optimizer).

    Raises:
        ValueError: naming what was expected and what is there.
    """
    if not state:
        return
    for key, spec in plan.state_spec(param.shape).items():
        tensor = state.get(key)
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
            there = {k: (tuple(v.shape), v.dtype) for k, v in state.items() if isinstance(v, Tensor)}
            raise ValueError(
                f"state of a parameter of shape {tuple(param.shape)} does not fit its settings: {key} should be "
                f"{spec.dtype} of shape {spec.shape}, the state has {there}. Keep optim_bits, state_format, "
                f"block_size, block_wise, min_8bit_size, param_rounding and master_bits as they were."
            )


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
