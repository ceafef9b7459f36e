"""Settings of a parameter group: names, validation, and the plan that they make with a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor

from lionbits_reference import caution
from lionbits_reference.spec import (
    MASTER_BITS,
    PARAM_ROUNDINGS,
    Format,
    Hyper,
    Plan,
    check_rate,
    checks,
)

#: What ``nonfinite=`` takes; ``"raise"`` is ``"skip"`` to a kernel, and looks at the count afterwards.
NONFINITE = ("skip", "raise", "propagate")

#: What ``args=`` may override, as in bitsandbytes.
ARGS = ("optim_bits", "min_8bit_size", "percentile_clipping", "block_wise")


class Options(TypedDict, total=False):
    """The keyword-only arguments of :class:`lionbits.Lion`, which every variant hands on."""

    block_size: int | None
    state_format: str | None
    rounding: str
    cautious: str | None
    grad_clip: float
    param_rounding: str
    master_bits: int
    nonfinite: str
    maximize: bool
    seed: int
    page_budget: int | None
    page_dir: str | None
    backend: Any
    overrides: Mapping[str, Mapping[str, Any]] | None


def from_args(args: object) -> dict[str, Any]:
    """The settings in bitsandbytes' ``args``: a mapping, or any object with attributes of these names."""
    if args is None:
        return {}
    found = args if isinstance(args, Mapping) else {key: getattr(args, key) for key in ARGS if hasattr(args, key)}
    return {key: found[key] for key in ARGS if key in found}


def check(group: Mapping[str, Any]) -> None:
    """Refuse a group whose settings break a rule, one message naming argument, value and rule.

    Raises:
        TypeError, ValueError.
    """
    check_rate(group["lr"], group["weight_decay"])
    Hyper.of(group["betas"], group["seed"], group["rounding"])
    state_format(group)
    checks.integer("min_8bit_size", group["min_8bit_size"], 1)
    hint = "100 turns percentile clipping off."
    checks.integer("percentile_clipping", group["percentile_clipping"], 1, 100, hint)
    checks.choice("cautious", group["cautious"], tuple(caution.PLAN_CAUTION))
    checks.number("grad_clip", group["grad_clip"], "0 turns clipping by norm off.")
    checks.choice("param_rounding", group["param_rounding"], PARAM_ROUNDINGS)
    checks.choice("master_bits", group["master_bits"], MASTER_BITS)
    checks.choice("nonfinite", group["nonfinite"], NONFINITE)
    checks.flag("maximize", group["maximize"])


def state_format(group: Mapping[str, Any]) -> Format:
    """The format that the group asks for (a small parameter may still keep float32)."""
    return Format.of(group["optim_bits"], group["state_format"], group["block_size"], group["block_wise"])


def plan(group: Mapping[str, Any], param: Tensor, grad_dtype: torch.dtype) -> Plan:
    """What a kernel specialises on for this parameter.

    ``param_rounding`` is about bfloat16: float32 parameters lose nothing, and have ``"nearest"`` in their plan.

    Raises:
        TypeError, ValueError: the parameter's or gradient's dtype is not served with these settings.
    """
    rounding = "nearest" if param.dtype == torch.float32 else group["param_rounding"]
    return Plan(
        param_dtype=param.dtype,
        grad_dtype=grad_dtype,
        format=state_format(group).for_parameter(param.shape, group["min_8bit_size"]),
        caution=caution.PLAN_CAUTION[group["cautious"]],
        param_rounding=rounding,
        master_bits=group["master_bits"] if rounding == "compensated" else 32,
        nonfinite="propagate" if group["nonfinite"] == "propagate" else "skip",
    )
