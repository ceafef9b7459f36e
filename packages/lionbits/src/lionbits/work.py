"""One step, from parameter groups to launches: numbers go up, factors come down, nothing waits on the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lionbits_reference import caution, clipping, formats
from lionbits_reference.spec import Backend, Batch, Hyper, Plan, Scalars, Slot, TensorSpec, float32

from . import options
from .paging import Movement, Pager
from .paging.pages import moving
from .scalars import Numbers, vector

Group = dict[str, Any]
State = dict[str, Any]


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


class Member(NamedTuple):
    """A parameter that takes part."""

    param: Tensor
    group: Group
    position: int


@dataclass(eq=False)
class Work:
    """The members of one launch, their slots and their numbers. Step after step, until anything else changes.

    Outside a step it keeps no gradient alive, and of state and parameters only the dicts and Parameters that users see.
    """

    launch: Launch
    members: list[Member] = field(default_factory=list)
    batch: Batch = field(default_factory=Batch)
    numbers: Numbers = field(init=False)
    numel: Tensor | None = None  # int64[k], for caution
    clips: bool = False

    def state_tensors(self) -> Iterator[tuple[str, list[State]]]:
        """Names of the state tensors that a step reads and writes, and whose state has them."""
        states: list[State] = [cast(State, slot.state) for slot in self.batch]
        for key in self.launch.plan.state_spec(self.members[0].param.shape):
            yield key, states
        yield "grad_norms", [s for m, s in zip(self.members, states, strict=True) if _keeps_norms(m.group)]


def collect(groups: Sequence[Group], states: Mapping[Tensor, State], pager: Pager) -> list[Work]:
    """Sort every parameter that has a gradient into launches. Checks all and changes nothing.

    Args:
        groups, states: of the optimizer.
        pager: says where parameters are updated.

    Raises:
        TypeError, ValueError, RuntimeError: a setting, gradient or state that cannot be served, named.
    """
    works: dict[Launch, Work] = {}
    position = 0
    for group in groups:
        options.check(group)
        hyper = Hyper.of(group["betas"], group["seed"], group["rounding"])
        for param in group["params"]:
            if param.grad is not None and param.requires_grad:
                grad = _checked_gradient(param)
                plan = options.plan(group, param, grad.dtype)
                check_state(plan, param, states.get(param))
                device, raises = pager.computes_on(param.device), group["nonfinite"] == "raise"
                launch = Launch(plan, hyper, device, param.device, group["cautious"], raises)
                works.setdefault(launch, Work(launch)).members.append(Member(param, group, position))
            position += 1
    return list(works.values())


def prepare(works: Sequence[Work], states: MutableMapping[Tensor, State], movement: Movement) -> None:
    """Create state that is not there yet, and fill in slots and numbers. Where memory fails nothing has changed."""
    members = [(w.launch.plan, m) for w in works for m in w.members]
    fresh = [(plan, m) for plan, m in members if not states.get(m.param)]
    held = [(m.param.device, states[m.param], moving(plan)) for plan, m in members if states.get(m.param)]
    pages = movement.residence.allocate([(m.param.device, _moving_specs(plan, m.param)) for plan, m in fresh], held)
    beside = [_state_beside(w.launch, m, states.get(m.param)) for w in works for m in w.members]
    for (_, m), tensors in zip(fresh, pages, strict=True):
        states[m.param] = {"step": 0, **tensors}
    for (_, m), tensors in zip(members, beside, strict=True):
        states[m.param].update(tensors)
    movement.residence.settle_in([(m.param.device, states[m.param], moving(plan)) for plan, m in members])
    for w in works:
        w.batch = Batch(Slot(m.param, _gradient(m.param), states[m.param], m.position) for m in w.members)
        groups = [member.group for member in w.members]
        w.numbers = Numbers(groups, [slot.state["step"] for slot in w.batch], w.launch.device)
        w.clips = any(_keeps_norms(group) or group["grad_clip"] > 0 for group in groups)
        if w.launch.plan.caution == "mask":
            w.numel = w.numbers.upload([slot.param.numel() for slot in w.batch], torch.int64)


def _moving_specs(plan: Plan, param: Tensor) -> dict[str, TensorSpec]:
    specs = plan.state_spec(param.shape)
    return {key: specs[key] for key in moving(plan)}


def _state_beside(launch: Launch, member: Member, state: State | None) -> State:
    """State that is missing, or not there, and that stays where the update runs however the rest is paged."""
    held, device = state or {}, launch.device
    beside: State = {}
    if launch.plan.format.tensor_wise:
        scale = held.get("exp_avg_scale")
        if scale is None:
            beside["exp_avg_scale"] = torch.zeros(1, 1, dtype=torch.float32, device=device)
        elif scale.device != device:
            beside["exp_avg_scale"] = scale.to(device)
    if _keeps_norms(member.group) and "grad_norms" not in held:
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
    plan, hyper, device, _, cautious, _ = work.launch
    slots = work.batch
    unscale = None if loss_scale is None else loss_scale.to(device).double().reciprocal().float().reshape(())
    scalars = work.numbers.scalars(skipped, unscale)
    if work.clips:
        each = zip(work.members, slots, scalars.step.unbind(), strict=True)
        factors = [_clip_factor(member, slot, step, unscale) for member, slot, step in each]
        scalars = replace(scalars, grad_scale=scalars.grad_scale * vector(factors, device))
    if plan.format.tensor_wise:
        scalars = _with_absmax(backend, work, movement, scalars)
    if plan.caution == "mask":
        assert cautious is not None
        assert work.numel is not None
        aligned = torch.zeros(len(slots), dtype=torch.int64, device=device)
        for part, at in movement.parts(plan, slots, writes=False):
            aligned[at] += backend.aligned(plan, part, hyper, scalars.part(at))
        scalars = replace(scalars, lr=scalars.lr * caution.rate_factor(cautious, aligned, work.numel))
    for part, at in movement.parts(plan, slots, writes=True):
        backend.step(plan, part, hyper, scalars.part(at))
    if scalars.absmax is not None:
        for slot, scale in zip(slots, formats.block_scale(scalars.absmax, plan.format), strict=True):
            slot.state["exp_avg_scale"].copy_(scale)


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


def _keeps_norms(group: Group) -> bool:
    return bool(group["percentile_clipping"] < 100)


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
    return grad


def _clip_factor(member: Member, slot: Slot, step: Tensor, unscale: Tensor | None) -> float | Tensor:
    """What clipping multiplies the gradient by."""
    group = member.group
    percentile, grad_clip = group["percentile_clipping"], group["grad_clip"]
    if percentile == 100 and grad_clip == 0:
        return 1.0
    norm = clipping.gradient_norm(slot.grad, "propagate" if group["nonfinite"] == "propagate" else "skip")
    norm = norm.to(step.device)
    if unscale is not None:
        norm = norm * unscale
    limit = torch.full_like(norm, float32(grad_clip) if grad_clip > 0 else torch.inf)
    if percentile < 100:
        clipping.remember(slot.state["grad_norms"], norm, step)
        usual = clipping.percentile_limit(slot.state["grad_norms"], percentile)
        limit = torch.where(usual < limit, usual, limit)  # a NaN among the norms limits nothing
    return clipping.clip_factor(norm, limit)


def _with_absmax(backend: Backend, work: Work, movement: Movement, scalars: Scalars) -> Scalars:
    plan, hyper, device = work.launch.plan, work.launch.hyper, work.launch.device
    absmax = torch.zeros(len(work.batch), dtype=torch.float32, device=device)
    for part, at in movement.parts(plan, work.batch, writes=False):
        absmax[at] = torch.maximum(absmax[at], backend.absmax(plan, part, hyper, scalars.part(at)))
    return replace(scalars, absmax=absmax)
