"""Settings of a parameter group: names, validation, and the plan that they make with a parameter."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lionbits_reference import caution
from lionbits_reference.spec import (
    FLOAT32,
    MASTER_BITS,
    NONFINITE,
    PARAM_ROUNDINGS,
    Format,
    Hyper,
    Plan,
    check_rate,
    checks,
)

from . import sharding

#: Settings that ``args=`` may override, as in bitsandbytes.
ARGS = ("optim_bits", "min_8bit_size", "percentile_clipping", "block_wise")


def from_args(args: object) -> dict[str, Any]:
    """Return the settings in bitsandbytes' ``args``: a mapping, or any object with attributes of these names.

    Raises:
        TypeError: a text, number or list, which cannot have any.
    """
    if args is None:
        return {}
    if isinstance(args, (str, bytes, int, float, list, tuple, set)):
        raise checks.mistyped("args", args, f"must be a mapping, or an object with attributes, of {', '.join(ARGS)}")
    found = args if isinstance(args, Mapping) else {key: getattr(args, key) for key in ARGS if hasattr(args, key)}
    return {key: found[key] for key in ARGS if key in found}


def plain(value: Any) -> Any:
    """Return numpy's numbers, truth values and texts as Python's, in lists, tuples and dicts too; others unchanged.

    ``torch.load(weights_only=True)`` reads Python's alone.
    """
    if type(value) in (tuple, list):
        return type(value)(plain(item) for item in value)
    if type(value) is dict:
        return {plain(key): plain(item) for key, item in value.items()}
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()
    if isinstance(value, (bool, torch.Tensor)) or not isinstance(value, numbers.Real):
        return str.__str__(value) if isinstance(value, str) else value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


#: Settings that are numbers to a kernel, may change at every step, and matter to nothing else.
RATES = ("lr", "weight_decay", "maximize")

#: Settings that decide about state, plan and launch.
STRUCTURE = (
    *("betas", "optim_bits", "min_8bit_size", "percentile_clipping", "block_wise", "block_size", "state_format"),
    *("rounding", "cautious", "grad_clip", "param_rounding", "master_bits", "nonfinite", "seed"),
)

#: The settings of a parameter group.
NAMES = (*RATES, *STRUCTURE)

#: Settings that QLion has beside them and that decide in which form momentum is held.
QLION = ("use_4bit", "quant_threshold")


def check_rates(group: Mapping[str, Any]) -> None:
    """Refuse ``RATES`` of a group that are not accepted, as :func:`check` does.

    Raises:
        TypeError, ValueError.
    """
    check_rate(group["lr"], group["weight_decay"])
    checks.flag("maximize", group["maximize"])


def check_complete(group: Mapping[str, Any]) -> None:
    """Refuse a group from which a setting was deleted.

    Raises:
        ValueError: naming the setting.
    """
    missing = [key for key in NAMES if key not in group]
    if missing:
        raise ValueError(
            f"a parameter group lacks {', '.join(missing)}: each setting must be there. Set it again; "
            f"optimizer.defaults has what the optimizer was made with."
        )


def check(group: Mapping[str, Any]) -> None:
    """Refuse a group whose settings break a rule, one message naming argument, value and rule.

    Raises:
        TypeError, ValueError.
    """
    check_complete(group)
    check_rates(group)
    Hyper.of(group["betas"], group["seed"], group["rounding"])
    state_format(group)
    checks.integer("min_8bit_size", group["min_8bit_size"], 1)
    hint = "100 turns percentile clipping off."
    checks.integer("percentile_clipping", group["percentile_clipping"], 1, 100, hint)
    checks.choice("cautious", group["cautious"], tuple(caution.PLAN_CAUTION))
    checks.number("grad_clip", group["grad_clip"], "0 turns clipping by norm off.")
    checks.choice("param_rounding", group["param_rounding"], PARAM_ROUNDINGS)
    checks.choice("master_bits", group["master_bits"], MASTER_BITS)
    checks.choice("nonfinite", group["nonfinite"], (*NONFINITE, "raise"))  # to a kernel "raise" is "skip"


def check_fixed(name: str, fixed: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse settings that contradict the name of a variant.

    Raises:
        ValueError.
    """
    for key, value in fixed.items():
        if given[key] != value:
            rule = f"contradicts {name}, which has {key}={value!r}"
            raise checks.refusal(ValueError, key, given[key], rule, "Use lionbits.Lion for other settings.")


def state_format(group: Mapping[str, Any]) -> Format:
    """Return the format that the group asks for (a small parameter may still keep float32)."""
    return Format.of(*_settings(group, ("optim_bits", "state_format", "block_size", "block_wise")))


def _settings(group: Mapping[str, Any], keys: Iterable[str]) -> list[Any]:
    """Return these settings of a group.

    Raises:
        ValueError: one is not there.
    """
    try:
        return [group[key] for key in keys]
    except KeyError:
        check_complete(group)
        raise


def plan(group: Mapping[str, Any], param: Tensor, grad_dtype: torch.dtype) -> Plan:
    """Return the settings that a kernel specialises on for this parameter.

    ``param_rounding`` is for bfloat16: float32 parameters lose nothing, and their plan says ``"nearest"``. The shape of
    a sharded parameter is that of the whole; if its cuts leave no parts that can have codes it keeps float32 momentum.

    Raises:
        TypeError, ValueError: the parameter's layout, its dtype or the gradient's is not served with these settings.
    """
    if param.layout != torch.strided:
        raise TypeError(f"a parameter of shape {tuple(param.shape)} has layout {param.layout}; it must be strided.")
    sharding.check(param)
    planned = _plan(param.dtype, grad_dtype, tuple(param.shape), *_settings(group, _PLANNED))
    return planned if sharding.can_hold(param, planned.format) else replace(planned, format=FLOAT32)


#: Settings that a plan depends on, in the order of :func:`_plan`'s arguments.
_PLANNED = (
    *("optim_bits", "state_format", "block_size", "block_wise", "min_8bit_size"),
    *("cautious", "param_rounding", "master_bits", "nonfinite"),
)


@functools.lru_cache(maxsize=8192)
def _plan(
    dtype: torch.dtype,
    grad_dtype: torch.dtype,
    shape: tuple[int, ...],
    optim_bits: int,
    name: str | None,
    block_size: int | None,
    block_wise: bool,
    min_8bit_size: int,
    cautious: str | None,
    param_rounding: str,
    master_bits: int,
    nonfinite: str,
) -> Plan:
    rounding = "nearest" if dtype == torch.float32 else param_rounding
    format = Format.of(optim_bits, name, block_size, block_wise).for_parameter(shape, min_8bit_size)
    return Plan(
        param_dtype=dtype,
        grad_dtype=grad_dtype,
        format=format,
        caution=caution.PLAN_CAUTION[cautious],
        param_rounding=rounding,
        master_bits=master_bits if rounding == "compensated" else 32,
        nonfinite="propagate" if nonfinite == "propagate" else "skip",
    )
