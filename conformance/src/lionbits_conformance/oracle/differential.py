"""The differential run: an optimizer and the oracle side by side, compared bit for bit after every step.

Beside ``events``, this is the only module of the oracle that imports torch and lionbits. The oracle gets settings as
they were passed to the constructor, not from the optimizer's groups, so that the front end's handling of arguments is
checked too.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .events import EVENTS
from .floats import BFLOAT16, BINARY16, BINARY32, INFINITY, Binary
from .lion import OracleLion
from .records import LISTS, Array, Settings, State

#: torch's integers as wide as a type, and the type's meaning; None for integers, which are compared as they are.
_PATTERNS: dict[torch.dtype, tuple[torch.dtype, Binary | None]] = {
    torch.float32: (torch.int32, BINARY32),
    torch.bfloat16: (torch.int16, BFLOAT16),
    torch.float16: (torch.int16, BINARY16),
    torch.uint8: (torch.uint8, None),
    torch.int16: (torch.int16, None),
    torch.int8: (torch.int8, None),
}

#: Settings that the name of a variant decides.
VARIANTS: dict[str, dict[str, Any]] = {
    f"{paged}Lion{bits}bit": {"optim_bits": bits} for paged in ("", "Paged") for bits in (32, 8, 4)
}

#: Settings that ``args`` may override.
ARGS = ("optim_bits", "min_8bit_size", "percentile_clipping", "block_wise")

#: A gradient, or what makes one of the parameter's decoded momentum (float32): gradients that cancel need it.
Gradient: TypeAlias = "Tensor | Callable[[Tensor], Tensor] | None"


@dataclass(frozen=True)
class StepInput:
    """One step, and the changes just before it.

    Attributes:
        grads: one for each parameter, or None.
        settings: of all groups, changed for this step and those after.
        loss_scale: as GradScaler hands it to an optimizer, with ``found_inf``.
        found_inf: what the scaler found.
        event: what happens behind the step, by its name in ``events.EVENTS``; "" is nothing.
    """

    grads: Sequence[Gradient]
    settings: Mapping[str, Any] = field(default_factory=dict)
    loss_scale: float | None = None
    found_inf: bool = False
    event: str = ""


@dataclass(frozen=True)
class Difference:
    """The first place where the optimizer differs from the oracle."""

    step: int
    parameter: int  # -1: of the optimizer as a whole
    field: str
    element: int  # -1: of the field as a whole
    oracle: str
    optimizer: str

    def __str__(self) -> str:
        return (
            f"step {self.step}, parameter {self.parameter}, {self.field}[{self.element}]: "
            f"{self.oracle} by the oracle, {self.optimizer} in the optimizer"
        )


def replay(
    optimizer_class: Callable[..., Any],
    kwargs: Mapping[str, Any],
    params: Sequence[Tensor],
    inputs: Sequence[StepInput],
    groups: Sequence[Mapping[str, Any]] | None = None,
    frozen: Collection[int] = (),
) -> Difference | None:
    """Run ``optimizer_class(params, **kwargs)`` and the oracle through the inputs; None if no bit differs.

    Args:
        optimizer_class: ``lionbits.Lion`` or a variant.
        kwargs: its keyword arguments; those that must not change results (backend, paging) the oracle ignores.
        params: any dtype and strides; they are left as they are, copies with the same strides are trained.
        inputs: the steps.
        groups: settings of each parameter, where each is to have a group of its own.
        frozen: parameters that do not require a gradient; they have a position all the same.
    """
    mine = [
        torch.nn.Parameter(p.detach().clone(memory_format=torch.preserve_format), requires_grad=j not in frozen)
        for j, p in enumerate(params)
    ]
    own: Sequence[Mapping[str, Any] | None] = [None] * len(mine) if groups is None else groups

    def make(params: Sequence[Tensor], **paging: Any) -> Any:
        given = (
            params
            if groups is None
            else [{"params": [p], **_own_values(more)} for p, more in zip(params, groups, strict=True)]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # 2 bits warn
            return optimizer_class(given, **{**_own_values(kwargs), **paging})

    optimizer = make(mine)
    settings = [settings_of(optimizer_class.__name__, kwargs, more) for more in own]
    oracle = OracleLion([array_of(p) for p in mine], settings)
    for number, step in enumerate(inputs):
        settings = [replace(s, **_plain(step.settings)) for s in settings]
        grads = [_gradient(oracle, at, given) for at, given in enumerate(step.grads)]
        oracle.step([None if g is None else array_of(g) for g in grads], step.loss_scale, settings, step.found_inf)
        for p, g in zip(mine, grads, strict=True):
            p.grad_dtype = None  # any: it may differ from the parameter's
            p.grad = g
        raised = take(optimizer, step)
        if raised != oracle.raised:
            return Difference(number, -1, "raised", -1, str(oracle.raised), str(raised))
        found = first_difference(oracle, mine, optimizer.state, optimizer.skipped_elements())
        if found is not None:
            return replace(found, step=number)
        if step.event:
            mine, optimizer = EVENTS[step.event](mine, optimizer, make)
    return None


def take(optimizer: Any, step: StepInput) -> bool:
    """Take one step of the optimizer, with changed groups and the scaler's attributes.

    Returns True if it ended in FloatingPointError. A learning rate that is a tensor, and stays one, changes in place,
    as schedules change it; so do lists of betas.
    """
    for group in optimizer.param_groups:
        changed = _own_values(step.settings)
        if isinstance(changed.get("lr"), Tensor) and isinstance(group["lr"], Tensor):
            group["lr"].copy_(changed.pop("lr"))
        if isinstance(changed.get("betas"), list) and isinstance(group["betas"], list):
            group["betas"][:] = changed.pop("betas")
        group.update(changed)
    if step.loss_scale is not None or step.found_inf:
        optimizer.grad_scale = None if step.loss_scale is None else torch.tensor(step.loss_scale)
        optimizer.found_inf = torch.tensor(float(step.found_inf))
    try:
        optimizer.step()
    except FloatingPointError:
        return True
    finally:
        for name in ("grad_scale", "found_inf"):
            optimizer.__dict__.pop(name, None)
    return False


def first_difference(
    oracle: OracleLion, params: Sequence[Tensor], states: Mapping[Tensor, Mapping[str, Any]], skipped: int
) -> Difference | None:
    """The first difference in parameters, state, or count of skipped elements; ``step`` is left 0."""
    for at, p in enumerate(params):
        expected, there = oracle.state[at], states.get(p, {})
        compared = [("param", oracle.params[at].bits, p.detach())]
        if (expected is None) != (not there):
            return Difference(0, at, "state", -1, str(expected), str(sorted(there)))
        if expected is not None:
            if there["step"] != expected.step:
                return Difference(0, at, "step", -1, str(expected.step), str(there["step"]))
            if {*there} - {"step"} != {name for name, _ in _present(expected)}:
                return Difference(0, at, "state", -1, str([n for n, _ in _present(expected)]), str(sorted(there)))
            compared += [(name, values, there[name]) for name, values in _present(expected)]
        for name, values, tensor in compared:
            found = _compare(name, values, tensor)
            if found is not None:
                return replace(found, parameter=at)
    if skipped != oracle.skipped:
        return Difference(0, -1, "skipped_elements", -1, str(oracle.skipped), str(skipped))
    return None


def settings_of(name: str, kwargs: Mapping[str, Any], group: Mapping[str, Any] | None = None) -> Settings:
    """The oracle's settings for a class of lionbits, its keyword arguments, and a parameter group's own settings.

    ``args`` overrides four arguments, as documented. A group with other bits than the optimizer's does not inherit a
    format or block size.
    """
    whole = _of_qlion(kwargs) if name == "QLion" else {**VARIANTS.get(name, {}), **kwargs}
    over = whole.get("args") or {}
    given = over if isinstance(over, Mapping) else vars(over)
    whole.update({key: given[key] for key in ARGS if key in given})
    more = dict(group or {})
    if more.get("optim_bits", whole.get("optim_bits", 32)) != whole.get("optim_bits", 32):
        whole = {key: value for key, value in whole.items() if key not in {"state_format", "block_size"}}
    return Settings(**_plain({**whole, **more}))


def array_of(tensor: Tensor) -> Array:
    """Return a tensor's bit patterns in logical row-major order."""
    return Array(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), patterns(tensor))


def patterns(tensor: Tensor) -> list[int]:
    """Return bit patterns as unsigned integers; for integer tensors, their values."""
    raw, binary = _PATTERNS[tensor.dtype]
    values: list[int] = tensor.detach().cpu().contiguous().view(raw).flatten().tolist()
    return values if binary is None else [value % (1 << binary.width) for value in values]


def _plain(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that the oracle needs; a tensor learning rate as its value."""
    names = {f.name for f in fields(Settings)}
    chosen = {name: value for name, value in kwargs.items() if name in names}
    if isinstance(chosen.get("lr"), Tensor):
        chosen["lr"] = chosen["lr"].item()
    return chosen


def _of_qlion(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return QLion's arguments as Lion's."""
    own = {"use_4bit": False, "cautious": False, "quant_threshold": 1024, "grad_clip": 1.0, **kwargs}
    b1, b2 = own.pop("betas", (0.9, 0.99))
    return {
        **own,
        "betas": (b1 * b2 if own.get("momentum_first") else b1, b2),
        "optim_bits": 4 if own["use_4bit"] else 32,
        "min_8bit_size": own["quant_threshold"] + 1,
        "cautious": "gradient" if own["cautious"] else None,
    }


def _own_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, tensors and lists among them copied: they may be written to."""
    return {
        key: copy.deepcopy(value) if isinstance(value, (Tensor, list)) else value for key, value in settings.items()
    }


def _gradient(oracle: OracleLion, at: int, given: Gradient) -> Tensor | None:
    if given is None or isinstance(given, Tensor):
        return given
    bits = [BINARY32.to_bits(m) for m in oracle.momentum(at)]
    signed = torch.tensor([b - 2**32 if b >= 2**31 else b for b in bits], dtype=torch.int32)
    return given(signed.view(torch.float32).reshape(oracle.params[at].shape))


def _present(state: State) -> Iterator[tuple[str, list[int]]]:
    for name in LISTS:
        values = getattr(state, name)
        if values is not None:
            yield name, values


def _compare(name: str, expected: list[int], tensor: Tensor) -> Difference | None:
    """Return the first element whose bits differ; all NaNs are equal."""
    if tensor.dtype not in _PATTERNS or tensor.numel() != len(expected):
        there = f"{tensor.numel()} of {tensor.dtype}"
        return Difference(0, -1, name, -1, f"{len(expected)} elements", there)
    _, binary = _PATTERNS[tensor.dtype]
    for element, (a, b) in enumerate(zip(expected, patterns(tensor), strict=True)):
        if a == b or (binary is not None and _is_nan(a, binary) and _is_nan(b, binary)):
            continue
        digits = 2 if binary is None else binary.width // 4
        return Difference(0, -1, name, element, f"{a:0{digits}x}", f"{b:0{digits}x}")
    return None


def _is_nan(bits: int, binary: Binary) -> bool:
    return bits % (1 << (binary.width - 1)) > binary.to_bits(INFINITY)
