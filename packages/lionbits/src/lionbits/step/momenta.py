"""Reading and writing the momentum of one parameter as float32 numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lionbits import groups, select, settings, sharding
from lionbits.state import entries
from lionbits_reference import backend as reference
from lionbits_reference import formats
from lionbits_reference.spec import Format, TensorSpec, checks, matrix_shape

from . import prepare
from .launch import ParamEntry

if TYPE_CHECKING:
    from lionbits.optimizer import Lion


def read(optimizer: Lion, param: Tensor) -> Tensor:
    """Return the momentum for :meth:`lionbits.Lion.momentum`."""
    group = _group(optimizer, param)
    optimizer._get_prefetcher().settle()
    shape, state = sharding.local_tensor(param).shape, optimizer.state.get(param)
    if state is None or entries.fresh(state):
        return sharding.placed_like(param, torch.zeros(shape, dtype=torch.float32, device=param.device), param.shape)
    plan, device = settings.plan(group, param, param.dtype), optimizer._pager.computes_on(param.device)
    prepare.check_momentum(plan, param, state, optimizer._get_prefetcher())
    backend = select.serving(optimizer._backend, plan, device)
    on_device = {key: state[key].to(device) for key in plan.format.momentum_spec(())}
    momentum = sharding.decode(backend.decode, plan.format, param, on_device)
    return sharding.placed_like(param, momentum.to(param.device), param.shape)


def write(optimizer: Lion, param: Tensor, momentum: Tensor) -> None:
    """Write the momentum for :meth:`lionbits.Lion.set_momentum`."""
    group = _group(optimizer, param)
    plan = settings.plan(group, param, param.dtype)
    sharding.check_settings(group, plan, param)
    if plan.format.tensor_wise and sharding.shard_group(param) is not None:
        hint = "Set it on one process and load a full state dict."
        raise checks.refusal(ValueError, "block_wise", False, "has a scale that no part of a tensor tells", hint)
    shares = sharding.shares_blocks(param, plan.format)
    device = param.device if shares else optimizer._pager.computes_on(param.device)
    local = _checked(param, momentum).detach().to(device)
    moves, state = optimizer._get_prefetcher(), optimizer.state.get(param)
    moves.settle()
    if state is not None and not entries.fresh(state):
        prepare.check_momentum(plan, param, state, moves)
    if moves.pager.moves(param.device):
        optimizer.init_state()  # which decides for all at once what stays on the device
    prepare.allocate([(plan, ParamEntry(param, group, 0))], optimizer.state, moves)
    specs = plan.format.momentum_spec(param.shape)
    held: dict[str, Tensor] = {key: optimizer.state[param][key] for key in specs}
    on_device = {key: tensor.to(device) for key, tensor in held.items()}
    if shares:
        there = sharding.gather(plan.format, param, specs, on_device)
        new = encoded(plan.format, there, sharding.whole(local, like=param))
        new = sharding.cut(plan.format, param, specs, new)
    elif local.numel():
        new = encoded(plan.format, on_device, local)
    else:
        return
    for key, value in new.items():
        held[key].copy_(value)


def encoded(format: Format, held: Mapping[str, Tensor], momentum: Tensor) -> dict[str, Tensor]:
    """Return state tensors for ``momentum``, rounded to nearest; blocks that hold it already stay as they are.

    Args:
        format: of the state.
        held: state tensors that are there.
        momentum: float32, on their device.
    """
    new = reference.encode(format, momentum)
    if not format.quantised:
        return new
    shape = matrix_shape(momentum.shape)
    differs = (reference.decode(format, held, momentum.shape) != momentum).reshape(shape).to(torch.float32)
    stays = formats.block_absmax(differs, format) == 0
    codes = held["exp_avg_codes"].reshape(shape[0], -1)
    width = codes.shape[1] if format.tensor_wise else format.block_size * format.bits // 8  # of a block, in bytes
    of_codes = stays.repeat_interleave(width, 1)[:, : codes.shape[1]]
    merged = torch.where(of_codes, codes, new["exp_avg_codes"].reshape(codes.shape))
    return {
        "exp_avg_codes": merged.reshape(held["exp_avg_codes"].shape),
        "exp_avg_scale": torch.where(stays, held["exp_avg_scale"], new["exp_avg_scale"]),
    }


def _group(optimizer: Lion, param: Tensor) -> groups.Group:
    if not isinstance(param, Tensor):
        raise checks.refusal(TypeError, "param", param, "must be one of this optimizer's parameters")
    return groups.holding(param, optimizer.param_groups)


def _checked(param: Tensor, momentum: Tensor) -> Tensor:
    """Return the local part of ``momentum``, having checked it.

    Raises:
        TypeError, ValueError: it is not what :meth:`lionbits.Lion.set_momentum` takes.
    """
    shape = tuple(param.shape)
    rule = f"must be a float32 tensor of the parameter's shape {shape}"
    if not isinstance(momentum, Tensor):
        raise checks.refusal(TypeError, "momentum", momentum, rule)
    if momentum.dtype != torch.float32 or not entries.readable(momentum):
        what = f"{momentum.dtype} of layout {momentum.layout} on {momentum.device}"
        raise checks.refusal(TypeError, "momentum", what, rule, "Pass momentum.float(), strided, on a device.")
    if tuple(momentum.shape) != shape:
        raise checks.refusal(ValueError, "momentum", tuple(momentum.shape), rule)
    if sharding.distributed(momentum) and not sharding.distributed(param):
        hint = "Pass momentum.full_tensor()."
        raise checks.refusal(ValueError, "momentum", "a DTensor", "must be a plain tensor, as the parameter is", hint)
    local: Tensor = sharding.from_dtensor(
        param, {"momentum": TensorSpec(shape, torch.float32)}, {"momentum": momentum}
    )["momentum"]
    if spoilt := int((~torch.isfinite(local)).sum()):
        raise ValueError(
            f"momentum of shape {shape} is not accepted: {spoilt} of its values are not finite, and momentum must be. "
            f"Pass torch.nan_to_num(momentum, 0, 0, 0)."
        )
    return local
