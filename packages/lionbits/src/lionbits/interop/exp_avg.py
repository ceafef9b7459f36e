"""Peers that keep plain momentum: ``exp_avg`` like the parameter, no codes, mostly no count of steps.

Their groups differ. A setting that Lion here also has is carried over; one that changes the rule is refused if it
has an effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lionbits import advice
from lionbits.state import counts

from .imported import DecodedState, ImportedStateDict, common, groups_of, plain, settings, states_of

Group = dict[str, Any]


@dataclass(frozen=True)
class Plain:
    """One peer's groups.

    Attributes:
        name: of the peer.
        defaults: settings beside lr, betas and weight_decay that its groups need, with what they are by default.
        inward: makes our settings of its group.
        outward: makes its settings, over ``defaults``, of our group.
        carries: settings beyond Lion's own that ``outward`` knows; see :func:`lionbits.interop.lion.warn_of_losses`.
        beside: what it keeps beside ``exp_avg``, empty.
    """

    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    inward: Callable[[Mapping[str, Any]], Group] = settings
    outward: Callable[[Mapping[str, Any]], Group] = lambda group: {}
    carries: Mapping[str, object] = field(default_factory=dict)
    beside: Callable[[DecodedState], dict[str, Any]] = lambda held: {}

    def read(self, state_dict: Mapping[str, Any]) -> ImportedStateDict:
        """Decode a state dict of this peer; see :func:`lionbits.interop.from_lion_pytorch`."""
        groups = groups_of(state_dict)
        steps = {key: {"step": group.get("step", 0)} for group in groups for key in group["params"]}
        held = {}
        for key, state in states_of(state_dict):
            left_behind(key, state, "kahan_comp", "what the parameter is short of in its dtype is not added to it.")
            held[key] = plain(key, state, counts.read(steps[key], f"state of parameter {key!r}"))
        return ImportedStateDict(held, [self.inward(group) for group in groups])

    def write(self, reading: ImportedStateDict) -> dict[str, Any]:
        """Return a state dict for this peer; see :func:`lionbits.interop.to_lion_pytorch`."""
        states = {key: {"exp_avg": held.exp_avg(), **self.beside(held)} for key, held in reading.held.items()}
        return {"state": states, "param_groups": [self._group(group, reading) for group in reading.groups]}

    def _group(self, group: Mapping[str, Any], reading: ImportedStateDict) -> Group:
        found = {**self.defaults, **common(group), **self.outward(group)}
        if "step" in found:
            found["step"] = max((reading.held[key].step for key in group["params"] if key in reading.held), default=0)
        return found


def refuse(group: Mapping[str, Any], name: str, harmless: object, why: str) -> None:
    """Refuse a setting of a peer that changes its rule, if weight decay gives it an effect.

    Raises:
        ValueError: naming the setting.
    """
    if group.get(name, harmless) != harmless and group.get("weight_decay", 0) > 0:
        raise ValueError(
            f"a group of the state dict has {name}={group[name]!r} with weight_decay={group['weight_decay']!r}: {why}. "
            f"Set {name}={harmless!r} in that group, and weight_decay to what corresponds."
        )


def _from_timm(group: Mapping[str, Any]) -> Group:
    refuse(group, "corrected_weight_decay", False, "decay scaled by lr^2 / max lr, which lionbits does not have")
    found = settings(group)
    return found | {"maximize": group.get("maximize", False), "cautious": "timm" if group.get("caution") else None}


def _to_timm(group: Mapping[str, Any]) -> Group:
    return {"maximize": group["maximize"], "caution": group["cautious"] == "timm"}


def _from_pytorch_optimizer(group: Mapping[str, Any]) -> Group:
    refuse(group, "weight_decouple", True, "decay added to the gradient, which lionbits does not have")
    refuse(group, "fixed_decay", False, "decay not scaled by the learning rate, which lionbits does not have")
    return settings(group) | {"cautious": "c-optim" if group.get("cautious") else None}


def _from_optimi(group: Mapping[str, Any]) -> Group:
    refuse(group, "decouple_lr", False, "decay scaled by lr / max_lr alone, which lionbits does not have")
    if "beta1" in group and "beta2" in group:
        group = {**group, "betas": (group["beta1"], group["beta2"])}
    return {name: value for name, value in settings(group).items() if name != "max_lr"}  # its own, not a schedule's


def _to_optimi(group: Mapping[str, Any]) -> Group:
    return {"beta1": group["betas"][0], "beta2": group["betas"][1]}


def _kahan(held: DecodedState) -> dict[str, Any]:
    """Return Kahan compensation of zero, None for float32: without the key optimi takes the momentum for missing."""
    narrow = held.dtype in (torch.bfloat16, torch.float16)
    return {"kahan_comp": torch.zeros(held.shape, dtype=held.dtype) if narrow else None}


def left_behind(key: Any, state: Mapping[str, Any], name: str, why: str) -> None:
    """Warn of a peer's tensor that is not empty and has no place here."""
    value = state.get(name)
    if isinstance(value, torch.Tensor) and value.any():
        advice.warn(f"{name} of parameter {key!r} is left behind: {why}")


LION_PYTORCH = Plain("lion-pytorch")
TIMM = Plain(
    "timm",
    {"caution": False, "corrected_weight_decay": False, "maximize": False, "foreach": None},
    _from_timm,
    _to_timm,
    {"maximize": True, "cautious": "timm"},
)
PYTORCH_OPTIMIZER = Plain(
    "pytorch-optimizer",
    {"weight_decouple": True, "fixed_decay": False, "foreach": None, "step": 0},
    _from_pytorch_optimizer,
    lambda group: {"cautious": True} if group["cautious"] == "c-optim" else {},
    {"cautious": "c-optim"},
)
OPTIMI = Plain(
    "optimi",
    {
        "decouple_lr": False,
        "max_lr": None,
        "kahan_sum": None,
        "foreach": None,
        "triton": None,
        "gradient_release": False,
        "setup": False,
    },
    _from_optimi,
    _to_optimi,
    beside=_kahan,
)
