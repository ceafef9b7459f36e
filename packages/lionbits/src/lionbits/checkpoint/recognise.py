"""Format detection: every Lion writes keys of its own into groups and states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

#: The key under which bitsandbytes hides its tensors from FSDP, since 0.49.2.
WRAPPED = "__bnb_optimizer_quant_state__"

#: Names that only an optimizer with a second moment keeps: no Lion.
_SECOND_MOMENTS = {"exp_avg_sq", "exp_avg_sq::quantized", "state2", "exp_inf"}


class Marks(NamedTuple):
    """Keys of which any one identifies a library."""

    group: frozenset[str]
    state: frozenset[str] = frozenset()


#: In this order; what fits none and keeps ``exp_avg`` alone has the form of lion-pytorch.
MARKS = {
    "lionbits": Marks(frozenset({"lionbits_version", "state_format"}), frozenset({"exp_avg_codes"})),
    "bitsandbytes": Marks(frozenset(), frozenset({WRAPPED, "state1"})),
    "flashlion": Marks(frozenset({"master_bytewidth"}), frozenset({"exp_avg::quantized"})),
    "qlion": Marks(frozenset({"quant_threshold"}), frozenset({"quant_exp_avg"})),
    "timm": Marks(frozenset({"corrected_weight_decay", "caution"})),
    "pytorch-optimizer": Marks(frozenset({"weight_decouple"})),
    "optimi": Marks(frozenset({"decouple_lr"}), frozenset({"kahan_comp"})),
}
PLAIN = "lion-pytorch"

#: Entries of optax's state, as fields or as keys.
_OPTAX = ("count", "mu")


def recognise(state_dict: object) -> str | None:
    """Return the name of the library whose Lion wrote ``state_dict``; None if it cannot be determined, or is no Lion's.

    Returns:
        ``"lionbits"``, ``"bitsandbytes"``, ``"flashlion"``, ``"qlion"``, ``"timm"``, ``"pytorch-optimizer"``,
        ``"optimi"``, ``"optax"``, or ``"lion-pytorch"``, whose form other plain Lions share.
    """
    if all(hasattr(state_dict, name) for name in _OPTAX):
        return "optax"
    if not isinstance(state_dict, Mapping):
        return None
    if state_dict.keys() == set(_OPTAX):
        return "optax"
    groups, states = state_dict.get("param_groups"), state_dict.get("state")
    if not isinstance(groups, Sequence) or not isinstance(states, Mapping):
        return None
    in_groups = {str(key) for group in groups if isinstance(group, Mapping) for key in group}
    each = _in_states(states)
    in_states = set().union(*each)
    if in_states & _SECOND_MOMENTS:
        return None
    for name, marks in MARKS.items():
        if marks.group & in_groups or marks.state & in_states:
            return name
    return PLAIN if each and all(keys == {"exp_avg"} for keys in each) else None


def second_moments(state_dict: Mapping[str, Any]) -> set[str]:
    """Return the names of second moments that a state dict holds; no Lion has any."""
    return set().union(*_in_states(state_dict["state"])) & _SECOND_MOMENTS


def reader(peer: str) -> str:
    """Return the call that reads this peer's state dicts, as text."""
    return f"lionbits.interop.from_{peer.replace('-', '_')}"


def _in_states(states: Mapping[Any, object]) -> list[set[str]]:
    """Return the names in the state of each parameter that has any."""
    return [
        {str(key) for key in _unwrapped(state)} for state in states.values() if isinstance(state, Mapping) and state
    ]


def _unwrapped(state: Mapping[str, object]) -> Mapping[str, object]:
    inner = state.get(WRAPPED)
    return {**state, **inner} if isinstance(inner, Mapping) else state
