"""Whole-step vectors on a real optimizer: needs torch and lionbits, and nothing of the oracle's arithmetic."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lionbits_conformance.oracle.differential import StepInput, patterns, take
from lionbits_conformance.oracle.records import TYPES

from .texts import canonical, unwords, words
from .whole_steps import DOUBLES, WIDTHS

_INTEGERS = {32: torch.int32, 16: torch.int16}


def obstacle(case: Mapping[str, Any]) -> str:
    """Return why this torch cannot run the case (before 2.10 it refuses other gradient dtypes), or an empty string."""
    dtypes = [given["dtype"] for given in case["parameters"]]
    own = all(
        grad is None or grad["dtype"] == dtype
        for step in case["steps"]
        for grad, dtype in zip(step["grads"], dtypes, strict=True)
    )
    if own or hasattr(Tensor, "grad_dtype"):
        return ""
    return f"torch {torch.__version__} takes gradients of the parameter's dtype only"


def replay(case: Mapping[str, Any], optimizer_class: Callable[..., Any], **kwargs: Any) -> str | None:
    """Run one case of ``cases("steps")``; the first difference in words, or None.

    Args:
        case: what to run.
        optimizer_class: ``lionbits.Lion``, or something that takes its arguments.
        kwargs: settings that must not matter, such as ``backend`` or ``is_paged``.
    """
    params, groups = [], []
    for given in case["parameters"]:
        param = torch.nn.Parameter(tensor(given["bits"], given["dtype"], given["shape"]))
        param.grad_dtype = None  # any
        params.append(param)
        groups.append({"params": [param], **settings(given["settings"])})
    seed = groups[0].pop("seed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # 2 bits warn
        optimizer = optimizer_class(groups, seed=seed, **kwargs)
    for number, step in enumerate(case["steps"]):
        found = _step(optimizer, params, step)
        if found is not None:
            return f"{case['name']}, step {number}: {found}"
    return None


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with their bit patterns decoded."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in DOUBLES:
            found[name] = _double(value)
        elif name == "betas":
            found[name] = (_double(value[0]), _double(value[1]))
        else:
            found[name] = int(value, 16) if name == "seed" else value
    return found


def tensor(text: str, dtype: str, shape: list[int]) -> Tensor:
    """Return a tensor of these bits."""
    width = TYPES[dtype].width
    signed = [bits - (bits >> (width - 1) << width) for bits in unwords(text)]
    kind: torch.dtype = getattr(torch, dtype)
    return torch.tensor(signed, dtype=_INTEGERS[width]).view(kind).reshape(shape)


def _step(optimizer: Any, params: list[torch.nn.Parameter], step: Mapping[str, Any]) -> str | None:
    for param, given in zip(params, step["grads"], strict=True):
        param.grad = None if given is None else tensor(given["bits"], given["dtype"], list(param.shape))
    scale = step["loss_scale"]
    loss_scale = None if scale is None else float(tensor(scale, "float32", []).item())
    raised = take(optimizer, StepInput([], settings(step["settings"]), loss_scale, step["found_inf"]))
    if raised != step["raised"]:
        return f"raised should be {step['raised']}"
    for at, (param, after) in enumerate(zip(params, step["after"], strict=True)):
        state = optimizer.state.get(param, {})
        expected = {"bits": after["bits"], **(after["state"] or {})}
        there = {"bits": _spelled(param, ""), **{key: _spelled(value, key) for key, value in state.items()}}
        for key in sorted(expected.keys() | there.keys()):
            found = _difference(expected.get(key), there.get(key))
            if found is not None:
                return f"parameter {at}, {key}{found}"
    if optimizer.skipped_elements() != step["skipped_elements"]:
        return f"{optimizer.skipped_elements()} skipped elements should be {step['skipped_elements']}"
    return None


def _spelled(value: Any, key: str) -> Any:
    """Return a parameter or a field of its state in the vectors' notation."""
    if key == "step":
        return int(value)
    if not isinstance(value, Tensor):
        return value
    bits = patterns(value)
    if key == "param_residual":
        return bits
    binary = TYPES.get(str(value.dtype).removeprefix("torch."))
    width = WIDTHS[key] if binary is None else binary.width
    return words(bits if binary is None else [canonical(b, binary) for b in bits], width)


def _difference(expected: Any, there: Any) -> str | None:
    if expected == there:
        return None
    if isinstance(expected, str) and isinstance(there, str):
        expected, there = expected.split(), there.split()
    if isinstance(expected, list) and isinstance(there, list) and len(expected) == len(there):
        at = next(j for j, (a, b) in enumerate(zip(expected, there, strict=True)) if a != b)
        return f"[{at}]: {there[at]} should be {expected[at]}"
    return f": {there} should be {expected}"


def _double(text: str) -> float:
    number: float = struct.unpack(">d", bytes.fromhex(text))[0]
    return number
