"""QLion's state dicts: int8 codes of seven levels on either side and one scale per tensor, or plain momentum.

QLion takes the sign from the new momentum, which is Lion with betas (b1*b2, b2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .exp_avg import Plain
from .imported import DecodedState, ImportedStateDict, groups_of, plain, settings, states_of, tensor


def read(state_dict: Mapping[str, Any], *, lions_order: bool = False) -> ImportedStateDict:
    """Decode a state dict of QLion; ``lions_order=True`` keeps betas as they are."""
    groups = [_inward(group, lions_order) for group in groups_of(state_dict)]
    return ImportedStateDict({key: _held(key, state) for key, state in states_of(state_dict)}, groups)


def _inward(group: Mapping[str, Any], lions_order: bool) -> dict[str, Any]:
    found = settings(group, "grad_clip")
    b1, b2 = found["betas"]
    cautious = "gradient" if group.get("cautious") else None
    return found | {"betas": (b1, b2) if lions_order else (b1 * b2, b2), "cautious": cautious}


def _held(key: Any, state: Mapping[str, Any]) -> DecodedState:
    if "quant_exp_avg" not in state:
        return plain(key, state)
    codes, scale = tensor(key, state, "quant_exp_avg"), state.get("scale")
    if isinstance(scale, Tensor) and scale.numel() == 1:
        scale = scale.reshape(())
    elif not isinstance(scale, (int, float)):
        raise ValueError(f"state of parameter {key!r} has quant_exp_avg and scale={scale!r}; one number is needed.")
    # In the dtype of QLion's own product; torch's load_state_dict has made floats of the codes, which changes nothing.
    return DecodedState(codes.shape, lambda: codes * scale, "int4, one scale", quantised=True)


def _outward(group: Mapping[str, Any]) -> dict[str, Any]:
    b1, b2 = group["betas"]
    if b1 >= b2:
        raise ValueError(
            f"betas={group['betas']!r} cannot be QLion's: with its order of operations b1 must be less than b2."
        )
    quantised = bool(group["optim_bits"] < 32)
    return {
        "betas": (b1 / b2, b2),
        "use_4bit": quantised,
        "quant_threshold": group["min_8bit_size"] - 1,
        "cautious": group["cautious"] == "gradient",
        "grad_clip": group["grad_clip"],
    }


#: Writer of plain momentum, which QLion quantises at its next step.
WRITTEN = Plain("qlion", outward=_outward, carries={"cautious": "gradient", "grad_clip": ...})
