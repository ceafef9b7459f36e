"""Entries of one parameter's state: the names that lionbits owns, and the form that a step needs.

Entries of others, such as a wrapper's copy of the weights, are kept unread.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lionbits import sharding
from lionbits_reference.spec import Plan, TensorSpec

from . import counts

State = Mapping[str, Any]

#: Names under which a state holds momentum, in any form.
MOMENTUM = frozenset({"exp_avg", "exp_avg_codes", "exp_avg_scale"})

#: The residual of a compensated bfloat16 parameter.
RESIDUAL = sharding.RESIDUAL

#: The history of percentile clipping.
NORMS = "grad_norms"

#: All names that are lionbits' own.
OWN = MOMENTUM | {counts.KEY, RESIDUAL, NORMS}


def fresh(state: State | None) -> bool:
    """True if the state has no entry of lionbits yet; entries of others do not count."""
    return not state or OWN.isdisjoint(state)


def whole_specs(plan: Plan, param: Tensor, state: State) -> dict[str, TensorSpec]:
    """Return names, shapes and dtypes of the whole parameter's state, and of a residual that is there without need."""
    return _with_residual(plan.state_spec(param.shape), param.shape, state)


def local_specs(plan: Plan, param: Tensor, state: State) -> dict[str, TensorSpec]:
    """Return the same for the part of the parameter on this rank."""
    return _with_residual(sharding.state_spec(plan, param), sharding.local_tensor(param).shape, state)


def _with_residual(wanted: dict[str, TensorSpec], shape: Sequence[int], state: State) -> dict[str, TensorSpec]:
    if RESIDUAL not in wanted and RESIDUAL in state:
        narrow = getattr(state[RESIDUAL], "dtype", None) == torch.int8
        wanted[RESIDUAL] = TensorSpec(tuple(shape), torch.int8 if narrow else torch.int16)
    return wanted


def readable(tensor: Tensor) -> bool:
    """True if the tensor's values can be read directly: neither sparse, mkldnn, nested nor on the meta device."""
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta


def check_form(wanted: Mapping[str, TensorSpec], param: Tensor, state: State) -> None:
    """Refuse state whose shapes or dtypes are not those wanted (settings were changed under a running optimizer).

    Raises:
        ValueError: naming what was expected and what is there.
    """
    for key, spec in wanted.items():
        tensor = state.get(key)
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
            plain = {k: v for k, v in state.items() if k in OWN and isinstance(v, Tensor) and not v.is_nested}
            there = {k: (tuple(v.shape), v.dtype) for k, v in plain.items()}
            raise ValueError(
                f"state of a parameter of shape {tuple(param.shape)} does not fit its settings: {key} should be "
                f"{spec.dtype} of shape {spec.shape}, the state has {there}. Keep optim_bits, state_format, "
                f"block_size, block_wise, min_8bit_size, param_rounding and master_bits as they were."
            )


def check(plan: Plan, param: Tensor, state: State | None, devices: Collection[torch.device], *, norms: bool) -> None:
    """Refuse state with which no step can be taken. A residual may be missing: then it is zero.

    Args:
        plan: of the parameter.
        param: whose state it is.
        state: of the parameter.
        devices: where its tensors may be, the first the one where the update runs.
        norms: whether the history of gradient norms is read.

    Raises:
        ValueError: naming what was expected and what is there.
    """
    if state is None or fresh(state):
        return
    counts.read(state, f"state of a parameter of shape {tuple(param.shape)}")
    wanted = {
        key: spec for key, spec in local_specs(plan, param, state).items() if key != RESIDUAL or RESIDUAL in state
    }
    _check_readable(wanted, param, state, devices)
    check_form(wanted, param, state)
    if norms and NORMS in state:
        history = {NORMS: TensorSpec((100,), torch.float32)}
        _check_readable(history, param, state, list(devices)[:1])
        check_form(history, param, state)


def _check_readable(names: Collection[str], param: Tensor, state: State, devices: Collection[torch.device]) -> None:
    """Refuse tensors that are not plain memory on one of these devices: kernels take their addresses."""
    for key in names:
        tensor = state.get(key)
        if not isinstance(tensor, Tensor):
            continue
        if tensor.layout != torch.strided or tensor.is_nested:
            where = f"state of a parameter of shape {tuple(param.shape)}"
            raise ValueError(f"{where}: {key} has layout {tensor.layout}; it must be a strided tensor.")
        if tensor.device not in devices:
            raise ValueError(
                f"state of a parameter of shape {tuple(param.shape)} is on another device than its update: {key} is on "
                f"{tensor.device}, it must be on {' or '.join(map(str, devices))}. Move the model first and load the "
                f"state then: optimizer.load_state_dict(optimizer.state_dict()) moves all of it."
            )
