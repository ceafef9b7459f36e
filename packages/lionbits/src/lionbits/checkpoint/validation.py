"""Checks of one parameter's state in a checkpoint, before any of it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lionbits import settings, sharding
from lionbits.state import counts, entries
from lionbits.state.entries import NORMS, OWN
from lionbits_reference import clipping
from lionbits_reference.spec import Plan, checks

_NO_NORMS = torch.zeros(clipping.HISTORY, dtype=torch.float32, device="cpu")


def examined(key: Any, param: Tensor, group: Mapping[str, Any], state: Any, *, ours: bool) -> dict[str, Any]:
    """Return the state as the optimizer holds it, over the same memory; entries of others stay as they are.

    Args:
        key: the parameter's id in the state dict, for messages.
        param: whose state it is to be.
        group: its settings in the checkpoint.
        state: as the checkpoint has it.
        ours: whether lionbits wrote the checkpoint, so that state without anything of lionbits' is a wrapper's.

    Raises:
        TypeError, ValueError: it is not what the settings say, or no optimizer of lionbits could have left it.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state of parameter {key!r} is a {type(state).__name__}; it must map names to tensors.")
    plain = dict(state)
    if entries.fresh(plain) and (ours or not plain):
        return plain
    step = counts.read(plain, f"state of parameter {key!r}")
    own = {name: value for name, value in plain.items() if name in OWN}
    own[counts.KEY] = counts.tensor(step)
    _check_readable(key, own)
    try:
        plan = settings.plan(group, param, param.dtype)
        own = _as_held(plan, param, own)
    except (TypeError, ValueError) as error:
        raise type(error)(f"parameter {key!r}: {error}") from None
    _check_norms(key, own)
    _check_values(key, plan, own)
    return plain | own


def check_real(params: Sequence[Tensor]) -> None:
    """Refuse state for parameters on the meta device, where it would be lost.

    Raises:
        ValueError: naming the shape of one.
    """
    for param in params:
        if param.is_meta:
            raise ValueError(
                f"the state dict has state of a parameter of shape {tuple(param.shape)}, which is on the meta device "
                f"here. Call the model's to_empty() first, then load."
            )


def _as_held(plan: Plan, param: Tensor, own: dict[str, Any]) -> dict[str, Any]:
    """Return local tensors in the form that kernels read, made from those of the checkpoint."""
    specs = entries.whole_specs(plan, param, own)
    unused = own.keys() & (entries.MOMENTUM - specs.keys())
    if unused:
        raise ValueError(f"the state has {sorted(unused)} beside {sorted(specs)}: momentum in two forms.")
    found = sharding.from_carried(plan.format, param, specs, own)
    entries.check_form(entries.local_specs(plan, param, found), param, found)
    return found


def _check_readable(key: Any, own: Mapping[str, Any]) -> None:
    for name, value in own.items():
        if isinstance(value, Tensor) and not entries.readable(value):
            raise ValueError(
                f"state of parameter {key!r} has {name} of layout {value.layout} on {value.device}; it must be a "
                f"strided tensor that holds values."
            )


def _check_norms(key: Any, own: Mapping[str, Any]) -> None:
    norms = own.get(NORMS, _NO_NORMS)
    if not isinstance(norms, Tensor):
        rule = "must be a float32 tensor of shape (100,)"
        raise checks.refusal(ValueError, f"state of parameter {key!r}: {NORMS}", norms, rule)
    if tuple(norms.shape) != _NO_NORMS.shape or norms.dtype != torch.float32:
        raise ValueError(
            f"state of parameter {key!r} has grad_norms of {norms.dtype} and shape {tuple(norms.shape)}; "
            f"float32 of shape (100,) is needed."
        )


def _check_values(key: Any, plan: Plan, state: Mapping[str, Any]) -> None:
    """Refuse numbers that no step writes: codes can be any bits, but a bad scale or norm would harm for good.

    An infinite momentum would have its element skipped at every step, a negative scale turns its block around, and a
    negative norm the gradient. Momentum that is not finite may come of ``nonfinite="propagate"`` alone, as may a norm
    that is NaN.
    """
    name = "exp_avg_scale" if plan.format.quantised else "exp_avg"
    largest = state[name].detach() * plan.format.top if plan.format.quantised else state[name].detach()
    if plan.nonfinite == "skip" and not torch.isfinite(largest).all():
        raise ValueError(f"state of parameter {key!r} has {name} that is not finite, which only 'propagate' leaves.")
    if plan.format.quantised and (largest < 0).any():
        raise ValueError(f"state of parameter {key!r} has a negative exp_avg_scale.")
    norms = state.get(NORMS, _NO_NORMS)
    if (norms < 0).any():
        raise ValueError(f"state of parameter {key!r} has a negative norm in grad_norms.")
    if plan.nonfinite == "skip" and norms.isnan().any():
        raise ValueError(f"state of parameter {key!r} has a NaN in grad_norms, which only 'propagate' leaves.")
