"""One step, from parameter groups to launches: numbers go up, factors come down, nothing waits on the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lionbits_reference import caution, clipping, formats
from lionbits_reference.spec import Backend, Hyper, Plan, Scalars, Slot, decay_factor, float32

from . import options
from .paging import Pager

Group = dict[str, Any]
State = dict[str, Any]


class Launch(NamedTuple):
    """What tensors must share to be updated by one call of a backend.

    The last two are nothing to the backend: they say what is done around the call.
    """

    plan: Plan
    hyper: Hyper
    device: torch.device
    cautious: str | None
    raises: bool


class Member(NamedTuple):
    """A parameter that takes part in this step."""

    param: Tensor
    grad: Tensor
    group: Group
    position: int


@dataclass
class Work:
    """The members of one launch, and their numbers while these are still on the host."""

    launch: Launch
    members: list[Member] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)


def collect(groups: Sequence[Group], states: Mapping[Tensor, State]) -> list[Work]:
    """Sort every parameter that has a gradient into launches. Checks all and changes nothing.

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
                grad = _checked_gradient(param, group)
                plan = options.plan(group, param, grad.dtype)
                check_state(plan, param, states.get(param))
                launch = Launch(plan, hyper, param.device, group["cautious"], group["nonfinite"] == "raise")
                works.setdefault(launch, Work(launch)).members.append(Member(param, grad, group, position))
            position += 1
    return list(works.values())


def prepare(works: Sequence[Work], states: MutableMapping[Tensor, State], pager: Pager) -> None:
    """Create state that is not there yet, count the step, and fill in slots. Where memory fails nothing has changed."""
    fresh = [(m.param, _missing_state(w.launch.plan, m, states.get(m.param), pager)) for w in works for m in w.members]
    for param, missing in fresh:
        states.setdefault(param, {}).update(missing)
    for w in works:
        for param, grad, _, position in w.members:
            state = states[param]
            state["step"] += 1
            w.steps.append(state["step"])
            w.slots.append(Slot(param.detach(), grad.detach(), state, position))


def _missing_state(plan: Plan, member: Member, state: State | None, pager: Pager) -> State:
    param, group = member.param, member.group
    missing: State = {}
    if not state:
        specs = plan.state_spec(param.shape).items()
        missing = {"step": 0, **{key: pager.allocate(spec, param.device) for key, spec in specs}}
    if group["percentile_clipping"] < 100 and "grad_norms" not in (state or {}):
        missing["grad_norms"] = torch.zeros(clipping.HISTORY, dtype=torch.float32, device=param.device)
    return missing


def run(work: Work, backend: Backend, pager: Pager, loss_scale: Tensor | None) -> Tensor:
    """Update the members; int64[1] on their device comes back: the elements that were skipped."""
    plan, hyper, device, cautious, _ = work.launch
    slots, scalars = work.slots, _scalars(work, loss_scale)
    if plan.format.tensor_wise:
        scalars = _with_absmax(backend, work, pager, scalars)
    if plan.caution == "mask":
        assert cautious is not None
        aligned = torch.zeros(len(slots), dtype=torch.int64, device=device)
        for part, at in pager.parts(slots):
            aligned[at] += backend.aligned(plan, part, hyper, scalars.part(at))
        numel = torch.tensor([slot.param.numel() for slot in slots], device=device)
        scalars.lr.mul_(caution.rate_factor(cautious, aligned, numel))
    for part, at in pager.parts(slots):
        backend.step(plan, part, hyper, scalars.part(at))
    if scalars.absmax is not None:
        for slot, scale in zip(slots, formats.block_scale(scalars.absmax, plan.format), strict=True):
            slot.state["exp_avg_scale"].copy_(scale)
    return scalars.skipped


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


def _checked_gradient(param: Tensor, group: Group) -> Tensor:
    grad = param.grad
    assert grad is not None
    where = f"the gradient of a parameter of shape {tuple(param.shape)}"
    if grad.layout != torch.strided:
        raise RuntimeError(f"lionbits does not support sparse gradients: {where} is {grad.layout}. Use sparse=False.")
    if grad.device != param.device:
        raise RuntimeError(f"{where} is on {grad.device}, the parameter on {param.device}; both must be on one device.")
    return grad


def _scalars(work: Work, loss_scale: Tensor | None) -> Scalars:
    device = work.launch.device
    unscale = None if loss_scale is None else loss_scale.to(device).double().reciprocal().float().reshape(())
    lr = [member.group["lr"] for member in work.members]
    keep = [decay_factor(member.group["lr"], member.group["weight_decay"]) for member in work.members]
    scale = [_grad_scale(member, slot, unscale) for member, slot in zip(work.members, work.slots, strict=True)]
    return Scalars(
        lr=_vector(lr, device),
        keep=_vector(keep, device),
        grad_scale=_vector(scale, device),
        step=torch.tensor(work.steps, dtype=torch.int64, device=device),
        skipped=torch.zeros(1, dtype=torch.int64, device=device),
    )


def _grad_scale(member: Member, slot: Slot, unscale: Tensor | None) -> float | Tensor:
    """What the gradient is multiplied by: -1 to maximize, reciprocal loss scale, clipping factor."""
    group = member.group
    scale: float | Tensor = -1.0 if group["maximize"] else 1.0
    if unscale is not None:
        scale = unscale * scale
    percentile, grad_clip = group["percentile_clipping"], group["grad_clip"]
    if percentile == 100 and grad_clip == 0:
        return scale
    norm = clipping.gradient_norm(slot.grad, "propagate" if group["nonfinite"] == "propagate" else "skip")
    if unscale is not None:
        norm = norm * unscale
    limit = torch.full_like(norm, float32(grad_clip) if grad_clip > 0 else torch.inf)
    if percentile < 100:
        clipping.remember(slot.state["grad_norms"], norm, slot.state["step"])
        usual = clipping.percentile_limit(slot.state["grad_norms"], percentile)
        limit = torch.where(usual < limit, usual, limit)  # a NaN among the norms limits nothing
    return clipping.clip_factor(norm, limit) * scale


def _with_absmax(backend: Backend, work: Work, pager: Pager, scalars: Scalars) -> Scalars:
    plan, hyper, device = work.launch.plan, work.launch.hyper, work.launch.device
    absmax = torch.zeros(len(work.slots), dtype=torch.float32, device=device)
    for part, at in pager.parts(work.slots):
        absmax[at] = torch.maximum(absmax[at], backend.absmax(plan, part, hyper, scalars.part(at)))
    return Scalars(scalars.lr, scalars.keep, scalars.grad_scale, scalars.step, scalars.skipped, absmax)


def _vector(values: Iterable[float | Tensor], device: torch.device) -> Tensor:
    """float32[k] on the device; numbers are rounded once, tensors stay where they are until then."""
    values = list(values)
    if not any(isinstance(value, Tensor) for value in values):
        return torch.tensor(values, dtype=torch.float32, device=device)
    return torch.stack([torch.as_tensor(v, dtype=torch.float32, device=device).detach().reshape(()) for v in values])
