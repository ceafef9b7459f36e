"""bitsandbytes' state dicts: wrapped since 0.49.2, flat before; blocks of 256 since 0.44, of 2048 before."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lionbits.checkpoint.recognise import WRAPPED
from lionbits.state import counts
from lionbits_reference.spec import checks

from . import dynamic_map
from .imported import DecodedState, ImportedStateDict, common, groups_of, settings, states_of, tensor

DEVICES = ("cpu", "cuda")

#: Elements from which bitsandbytes' own ``min_8bit_size`` makes codes.
SMALLEST = 4096


def read(state_dict: Mapping[str, Any], written_on: str | None = None) -> ImportedStateDict:
    """Decode with the table and block size that each state carries; see :func:`lionbits.interop.from_bitsandbytes`."""
    checks.choice("written_on", written_on, (None, *DEVICES))
    groups = [_group(i, group) for i, group in enumerate(groups_of(state_dict))]
    held = {key: _held(key, _unwrapped(key, state), written_on) for key, state in states_of(state_dict)}
    return ImportedStateDict(held, groups)


def write(reading: ImportedStateDict, optim_bits: int | None = None) -> dict[str, Any]:
    """Return a wrapped state dict; see :func:`lionbits.interop.to_bitsandbytes`."""
    checks.choice("optim_bits", optim_bits, (None, 32, 8))
    values = dynamic_map.table()
    states = {}
    for key, held in reading.held.items():
        inner: dict[str, Any] = {"state1": held.exp_avg()}
        narrow = held.quantised
        if optim_bits is not None:
            narrow = optim_bits == 8 and held.shape.numel() >= SMALLEST
        if narrow:
            codes, absmax = dynamic_map.quantise(inner["state1"])
            values = values.to(codes.device)
            inner = {"state1": codes, "qmap1": values, "absmax1": absmax}
        states[key] = {"step": held.step, WRAPPED: inner}
    return {"state": states, "param_groups": [{"eps": 0.0, **common(group)} for group in reading.groups]}


def _group(i: int, group: Mapping[str, Any]) -> dict[str, Any]:
    found = settings(group)
    eps = group.get("eps", 0.0)
    if eps != 0 or found["betas"][1:] == (0,):
        raise ValueError(
            f"param_groups[{i}] has eps={eps!r} and betas={found['betas']!r}: bitsandbytes' Lion has eps=0.0 and "
            f"beta2 > 0; this is another of its optimizers (SGD, LARS, RMSprop, Adagrad), whose state is not momentum "
            f"as Lion's is."
        )
    return found


def _unwrapped(key: Any, state: dict[str, Any]) -> dict[str, Any]:
    inner = state.pop(WRAPPED, {})
    if not isinstance(inner, Mapping):
        raise TypeError(
            f"state of parameter {key!r} has {WRAPPED!r} of type {type(inner).__name__}; it must be a dict."
        )
    return {**state, **inner}


def _held(key: Any, state: dict[str, Any], written_on: str | None) -> DecodedState:
    if "state2" in state:
        raise ValueError(f"state of parameter {key!r} has 'state2': an optimizer with two moments (Adam), not Lion.")
    state1 = _in_order(key, tensor(key, state, "state1"), written_on)
    norms = tensor(key, state, "gnorm_vec").float().sqrt() if "gnorm_vec" in state else None  # it keeps squares
    step = counts.read(state, f"state of parameter {key!r}")
    if state1.dtype == torch.uint8:
        absmax, block, form = _scales(key, state1.numel(), state)
        decode = partial(dynamic_map.dequantise, state1, _table(key, state), absmax, block)
        return DecodedState(state1.shape, decode, form, quantised=True, step=step, grad_norms=norms)
    if "qmap1" in state or state1.dtype != torch.float32:
        beside = " beside qmap1" if "qmap1" in state else ""
        raise ValueError(
            f"state of parameter {key!r} has state1 of {state1.dtype}{beside}: codes are uint8 and momentum is "
            f"float32; something has cast the state since it was saved."
        )
    return DecodedState(state1.shape, lambda: state1, "float32", step=step, grad_norms=norms)


def _table(key: Any, state: dict[str, Any]) -> Tensor:
    values = tensor(key, state, "qmap1").float()
    if values.shape != (256,):
        raise ValueError(f"state of parameter {key!r} has a qmap1 of shape {tuple(values.shape)}; it must be (256,).")
    return values


def _scales(key: Any, n: int, state: dict[str, Any]) -> tuple[Tensor, int, str]:
    """Scales of ``n`` codes, how many codes share one, and that in words."""
    if "absmax1" not in state and "max1" in state:  # block_wise=False, before 0.50
        return tensor(key, state, "max1").float().reshape(1), n, "8 bits, one scale"
    absmax = tensor(key, state, "absmax1").float()
    for block in (dynamic_map.BLOCK, dynamic_map.OLD_BLOCK):
        if absmax.numel() == -(-n // block):
            return absmax, block, f"8 bits in blocks of {block}"
    raise ValueError(
        f"state of parameter {key!r} has {absmax.numel()} scales for {n:,} codes; blocks of {dynamic_map.BLOCK} make "
        f"{-(-n // dynamic_map.BLOCK)}, blocks of {dynamic_map.OLD_BLOCK} make {-(-n // dynamic_map.OLD_BLOCK)}. "
        f"A shard of a tensor cannot be read: gather it first."
    )


def _in_order(key: Any, state1: Tensor, written_on: str | None) -> Tensor:
    """``state1`` with its elements in the logical order of the parameter.

    The state of a channels_last parameter is made with its strides; then bitsandbytes makes the parameter contiguous.
    On CUDA its kernels walk both through raw pointers, so that element i of the parameter has its state in place i of
    memory, whatever the strides say. On the CPU torch's operations heed the strides.
    """
    if state1.is_contiguous():
        return state1
    if written_on is None:
        raise ValueError(
            f"state1 of parameter {key!r} has shape {tuple(state1.shape)} and strides {state1.stride()}: the order of "
            f"its elements depends on where bitsandbytes ran. Pass written_on='cuda' or written_on='cpu'."
        )
    span = 1 + sum((size - 1) * stride for size, stride in zip(state1.shape, state1.stride(), strict=True))
    if written_on == "cpu" or span != state1.numel():
        return state1.contiguous()
    return state1.as_strided((span,), (1,)).reshape(state1.shape)
