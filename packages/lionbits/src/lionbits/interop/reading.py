"""What every Lion's state dict says, whatever the form in which it says it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lionbits import checkpoint

#: What schedulers leave in a group, for themselves.
SCHEDULED = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")

#: What every peer has in its groups, or may have.
COMMON = ("lr", "betas", "weight_decay", *SCHEDULED, "param_names", "params")

State = Mapping[str, Any]


class Held(NamedTuple):
    """The state of one parameter, decoded when it is asked for: float32 of a whole model may not fit in memory.

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
        """The momentum: float32, contiguous, of the parameter's shape. It may share memory with the state dict.

        Raises:
            ValueError: it is not finite, and such an element would be skipped for ever.
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
class Reading:
    """A state dict, read.

    Attributes:
        held: parameter id -> its state; a parameter without state is not there.
        groups: Lion's settings under lionbits' names, as far as the peer has them, with ``"params"`` (ids) and,
            where known, ``"param_names"``.
    """

    held: dict[Any, Held]
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
    """The groups of a state dict, after a look at its form.

    Raises:
        TypeError, ValueError: it has not the form of one.
    """
    checkpoint.check_mapping(state_dict)
    return [dict(group) for group in checkpoint.checked_form(state_dict)]


def states_of(state_dict: Mapping[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(parameter id, state) of every parameter that its groups list and that has state.

    Raises:
        TypeError: a state is no mapping. ValueError: it has state under a key that no group lists.
    """
    groups = state_dict["param_groups"]
    checkpoint.check_keys(state_dict, [key for group in groups for key in group["params"]])
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
    """What a group says about ``lr``, ``betas``, ``weight_decay`` and ``more``, its parameters, and its schedule.

    Raises:
        ValueError: one of them is missing.
    """
    wanted = ("lr", "betas", "weight_decay", *more)
    missing = [name for name in wanted if name not in group]
    if missing:
        raise ValueError(f"a group of the state dict lacks {', '.join(missing)}: it has {sorted(map(str, group))}.")
    beside = [name for name in (*SCHEDULED, "param_names") if name in group]
    found = {name: group[name] for name in (*wanted, *beside, "params")}
    return found | {"betas": tuple(found["betas"])}


def common(group: Mapping[str, Any]) -> dict[str, Any]:
    """What of a group of ours every peer understands."""
    return {name: group[name] for name in COMMON if name in group}


def plain(key: Any, state: State, step: int = 0) -> Held:
    """State that is ``exp_avg`` in a float dtype.

    Raises:
        TypeError, ValueError: it is not.
    """
    exp_avg = tensor(key, state, "exp_avg")
    if not exp_avg.is_floating_point():
        raise TypeError(f"exp_avg of parameter {key!r} has dtype {exp_avg.dtype}; it must be floating-point.")
    return Held(exp_avg.shape, lambda: exp_avg, str(exp_avg.dtype).removeprefix("torch."), step=step)
