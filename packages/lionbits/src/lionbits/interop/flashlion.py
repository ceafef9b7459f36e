"""FlashLion's state dicts (flashoptim): int8 codes companded by softsign, float16 scales of 32 elements; or plain.

y = code / 127        m = y / (2 - |y|) * scale
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lionbits.state import counts

from .exp_avg import left_behind
from .imported import DecodedState, ImportedStateDict, groups_of, plain, settings, states_of, tensor

GROUP = 32
_CODES, _SCALES = "exp_avg::quantized", "exp_avg::scales"


def read(state_dict: Mapping[str, Any]) -> ImportedStateDict:
    """Decode a state dict of FlashLion; see :func:`lionbits.interop.from_flashlion`."""
    groups = [settings(group) for group in groups_of(state_dict)]
    return ImportedStateDict({key: _held(key, state) for key, state in states_of(state_dict)}, groups)


def _held(key: Any, state: Mapping[str, Any]) -> DecodedState:
    left_behind(key, state, "error_bits", "take float32 parameters from its get_fp32_model_state_dict first.")
    step = counts.read(state, f"state of parameter {key!r}") if "step" in state else 0
    if _CODES not in state:
        return plain(key, state, step)
    return _coded(key, state, step)


def _coded(key: Any, state: Mapping[str, Any], step: int) -> DecodedState:
    codes, scales = tensor(key, state, _CODES), tensor(key, state, _SCALES)
    if scales.dtype == torch.bfloat16:  # the bits of float16, so labelled that torch casts nothing
        scales = scales.view(torch.float16)
    wanted = -(-codes.numel() // GROUP)
    if scales.numel() != wanted:
        raise ValueError(
            f"state of parameter {key!r} has {scales.numel()} scales for {codes.numel():,} codes; groups of {GROUP} "
            f"make {wanted}. A shard of a tensor cannot be read: gather it first."
        )
    form = f"int8 in blocks of {GROUP}"
    return DecodedState(codes.shape, partial(_decoded, codes, scales), form, quantised=True, step=step)


def _decoded(codes: Tensor, scales: Tensor) -> Tensor:
    y = codes.reshape(-1).to(torch.float32) / 127
    scale = scales.reshape(-1).to(torch.float32).repeat_interleave(GROUP)[: codes.numel()]
    return (y / (2 - y.abs()) * scale).reshape(codes.shape)
