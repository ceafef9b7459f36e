"""Exact float32 weights of a model whose bfloat16 parameters are compensated, for saving and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lionbits import groups, settings, sharding
from lionbits.state import entries, residual
from lionbits_reference.spec import checks

if TYPE_CHECKING:
    from lionbits.optimizer import Lion


@torch.no_grad()
def float32_parameters(model: nn.Module, optimizer: Lion) -> dict[str, Tensor]:
    """The parameters of ``model`` as float32 tensors, by name, with what compensation keeps of them in the state.

    ``float32_model.load_state_dict({**model.state_dict(), **float32_parameters(model, optimizer)})`` makes a float32
    model of them. With ``master_bits=32`` they are the weights of a float32 run, bit for bit; with 24, their upper 24
    bits.

    Args:
        model: its bfloat16, float16 and float32 parameters become float32, exactly. Parameters of other dtypes are
            copied as they are. Neither it nor the optimizer is changed.
        optimizer: that updates the model, paged or not. Parameters that it does not hold, or does not compensate, have
            the values that they show.

    Returns:
        Name, as ``model.named_parameters()`` says it, to a copy of the parameter's shape on its device. Parameters that
        are shared have all their names and one tensor. Of a sharded parameter: a DTensor placed like it, made without a
        collective call.

    Raises:
        TypeError: ``model`` is no module, or ``optimizer`` none of lionbits. ValueError: the optimizer holds none of
            the model's parameters; or a parameter was made float32 and changed since.
    """
    if not isinstance(model, nn.Module):
        raise checks.refusal(TypeError, "model", model, "must be a torch.nn.Module, before the optimizer")
    groups.check_optimizer(optimizer)
    held = {id(param): group for group in optimizer.param_groups for param in group["params"]}
    named = list(model.named_parameters(remove_duplicate=False))
    if not any(id(param) in held for _, param in named):
        raise ValueError(
            f"model={type(model).__name__} has no parameter that the optimizer holds. Pass the model that it updates."
        )
    optimizer._get_prefetcher().settle()
    made: dict[int, Tensor] = {}
    for _, param in named:
        if id(param) not in made:
            state = optimizer.state.get(param, {}) if id(param) in held else {}
            made[id(param)] = sharding.placed_like(param, _whole(param, held.get(id(param)), state), param.shape)
    return {name: made[id(param)] for name, param in named}


def _whole(param: Tensor, group: groups.Group | None, state: groups.Group) -> Tensor:
    """Return the local part of a parameter, completed by the residual in its state."""
    local = sharding.local_tensor(param).detach()
    if local.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return local.clone()
    kept = state.get(entries.RESIDUAL)
    if group is None or kept is None or local.dtype == torch.float16:
        return local.to(torch.float32, copy=True)
    plan = settings.plan(group, param, param.dtype)
    if local.dtype == torch.bfloat16 and plan.param_rounding != "compensated":
        return local.to(torch.float32, copy=True)  # the next step drops the residual
    entries.check_form(entries.local_specs(plan, param, state), param, state)
    return residual.joined(local, kept)
