"""The content of a Lion's state dict, independent of its format."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lionbits.checkpoint import form
from lionbits_reference.spec import checks

#: Keys that schedulers write into a group.
SCHEDULED = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")

#: Keys that every peer has in its groups, or may have.
COMMON = ("lr", "betas", "weight_decay", *SCHEDULED, "param_names", "params")

State = Mapping[str, Any]


class DecodedState(NamedTuple):
    """The state of one parameter, decoded on request: float32 of a whole model may not fit in memory.

    Attributes:
        shape: of the parameter.
        decode: makes its momentum, in any float dtype and strides.
        form: how it was held, in words.
        quantised: whether that was as codes.
        step: updates so far; 0 where the peer does not count.
        grad_norms: float32[100], the history of percentile clipping, where there is one.
        dtype: of the parameter, where it is known.
    """

    shape: torch.Size
    decode: Callable[[], Tensor]
    form: str
    quantised: bool = False
    step: int = 0
    grad_norms: Tensor | None = None
    dtype: torch.dtype | None = None

    def exp_avg(self) -> Tensor:
        """Return the momentum: float32, contiguous, of the parameter's shape. It may share memory with the state dict.

        Raises:
            ValueError: it is not finite; such an element would always be skipped.
        """
        found = self.decode().detach().to(torch.float32).contiguous()
        spoilt = int((~torch.isfinite(found)).sum())
        if spoilt:
            raise ValueError(
                f"a momentum of shape {tuple(self.shape)}, held as {self.form}, is not finite in {spoilt:,} of "
                f"{found.numel():,} elements, which would never move again. Set them to zero in the state dict first."
            )
        return found


@dataclass(frozen=True)
class ImportedStateDict:
    """A state dict that was read.

    Attributes:
        held: parameter id -> its state; a parameter without state is not there.
        groups: Lion's settings under lionbits' names, as far as the peer has them, with ``"params"`` (ids) and,
            where known, ``"param_names"``.
    """

    held: dict[Any, DecodedState]
    groups: list[dict[str, Any]]

    @property
    def ids(self) -> list[Any]:
        """All parameters, in order."""
        return [key for group in self.groups for key in group["params"]]

    @property
    def names(self) -> list[str] | None:
        """Their names, if every group has them."""
        if not all("param_names" in group for group in self.groups):
            return None
        return [name for group in self.groups for name in group["param_names"]]


def groups_of(state_dict: Any) -> list[dict[str, Any]]:
    """Return the groups of a state dict, having checked its form.

    Raises:
        TypeError, ValueError: it has not the form of one, or a setting is no single number.
    """
    form.check_mapping(state_dict)
    groups = [dict(group) for group in form.checked_form(state_dict)]
    for i, group in enumerate(groups):
        for name, value in group.items():
            _check_single(f"param_groups[{i}][{name!r}] of the state dict", value)
    return groups


def _check_single(name: str, value: object) -> None:
    """Refuse tensors of several elements, which are neither true nor false, and ints that no float holds."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise checks.refusal(TypeError, name, value, "must be a single value")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise checks.refusal(ValueError, name, value, "must be a number that a float holds")


def _checked_betas(betas: object) -> tuple[float, float]:
    rule = "must be two numbers in 0..1"
    pair = betas if isinstance(betas, (tuple, list)) else (None,)
    if any(isinstance(b, bool) or not isinstance(b, numbers.Real) for b in pair):
        raise checks.refusal(TypeError, "betas in a group of the state dict", betas, rule)
    if len(pair) != 2 or not all(0 <= b <= 1 for b in pair):
        raise checks.refusal(ValueError, "betas in a group of the state dict", betas, rule)
    return pair[0], pair[1]


def states_of(state_dict: Mapping[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(parameter id, state) of every parameter that its groups list and that has state.

    Raises:
        TypeError: a state is no mapping. ValueError: it has state under a key that no group lists.
    """
    groups = state_dict["param_groups"]
    form.check_keys(state_dict, [key for group in groups for key in group["params"]])
    for group in groups:
        for key in group["params"]:
            state = state_dict["state"].get(key, {})
            if not isinstance(state, Mapping):
                raise TypeError(f"state of parameter {key!r} is a {type(state).__name__}; it must map names to values.")
            if state:
                yield key, dict(state)


def tensor(key: Any, state: State, name: str) -> Tensor:
    """The tensor ``name`` of a state.

    Raises:
        ValueError: it is not there. TypeError: it is no tensor.
    """
    if name not in state:
        raise ValueError(f"state of parameter {key!r} lacks {name!r}: it has {sorted(map(str, state))}.")
    if not isinstance(state[name], Tensor):
        raise TypeError(f"state of parameter {key!r} has {name}={state[name]!r}; it must be a tensor.")
    found: Tensor = state[name]
    return found


def settings(group: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """Return ``lr``, ``betas``, ``weight_decay`` and ``more`` of a group, with its parameters and schedule.

    Raises:
        TypeError, ValueError: one of them is missing, or betas are not two numbers.
    """
    wanted = ("lr", "betas", "weight_decay", *more)
    missing = [name for name in wanted if name not in group]
    if missing:
        raise ValueError(f"a group of the state dict lacks {', '.join(missing)}: it has {sorted(map(str, group))}.")
    beside = [name for name in (*SCHEDULED, "param_names") if name in group]
    found = {name: group[name] for name in (*wanted, *beside, "params")}
    return found | {"betas": _checked_betas(found["betas"])}


def common(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of our group that every peer has."""
    return {name: group[name] for name in COMMON if name in group}


def plain(key: Any, state: State, step: int = 0) -> DecodedState:
    """Return state that is ``exp_avg`` in a float dtype.

    Raises:
        TypeError, ValueError: it is not.
    """
    exp_avg = tensor(key, state, "exp_avg")
    if not exp_avg.is_floating_point():
        raise TypeError(f"exp_avg of parameter {key!r} has dtype {exp_avg.dtype}; it must be floating-point.")
    return DecodedState(exp_avg.shape, lambda: exp_avg, str(exp_avg.dtype).removeprefix("torch."), step=step)
