"""The update of one parameter alone, with the bits of a whole step: no update depends on another parameter."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lionbits_reference.spec import checks

from . import prepare
from .cache import StepCache

if TYPE_CHECKING:
    from lionbits.optimizer import Lion

Group = Any  # a parameter group, or a view of one


class ParameterStep:
    """The step of one parameter, with what it keeps for the next.

    Args:
        optimizer: that holds the parameter.
        param: to be updated.
    """

    def __init__(self, optimizer: Lion, param: Tensor) -> None:
        self._optimizer, self._param = optimizer, param
        self._place = (-1, -1)
        self._view: tuple[Group, int] | None = None
        self._states: dict[Tensor, dict[str, Any]] = {}
        self._step_cache: StepCache | None = None

    def forget(self) -> None:
        """Drop what is kept of earlier steps, but for what captured graphs go on reading."""
        self._states = {}
        if self._step_cache is not None:
            self._step_cache = self._step_cache.recorded()

    def recount(self) -> None:
        """Count the replays of captured graphs."""
        if self._step_cache is not None:
            self._step_cache.recount()

    def found(self) -> tuple[Group, int] | None:
        """Return a group with this parameter alone, and its position over all groups; None if it has left its group."""
        param, groups = self._param, self._optimizer.param_groups
        i, j = self._place
        known = 0 <= i < len(groups) and j < len(groups[i]["params"]) and groups[i]["params"][j] is param
        if self._view is None or not known or self._view[0].maps[1] is not groups[i]:
            self._view, position = None, 0
            for i, group in enumerate(groups):
                for j, held in enumerate(group["params"]):
                    if held is param:
                        self._place, self._view = (i, j), (ChainMap({"params": [param]}, group), position)
                        return self._view
                    position += 1
        return self._view

    def run(self, found: tuple[Group, int], allocate: Callable[[], None]) -> None:
        """Update the parameter, which has a gradient.

        Args:
            found: what :meth:`found` returned.
            allocate: runs before state is made that the parameter lacks.

        Raises:
            TypeError, ValueError, RuntimeError, FloatingPointError: as a step would.
        """
        param, optimizer = self._param, self._optimizer
        group, position = found
        optimizer._get_prefetcher().exported.write_back()
        held = [group], self._states, optimizer._backend
        known = param in self._states and optimizer.state.get(param) is self._states[param]
        grads = self._step_cache.grads(*held) if known and self._step_cache is not None else None
        if self._step_cache is None or grads is None:
            allocate()
            self._states = {param: optimizer.state.get(param, {})}
            held = [group], self._states, optimizer._backend
            self._step_cache = StepCache(*held, optimizer._get_prefetcher(), before=self._step_cache, first=position)
            optimizer.state[param] = self._states[param]
            grads = self._step_cache.first_grads()
        self._step_cache.run(grads, None, optimizer._skipped)


def step_parameter(
    optimizer: Lion, steps: dict[Tensor, ParameterStep], param: Tensor, group: Group, i: int | None
) -> None:
    """Update one parameter, if it has a gradient.

    Args:
        optimizer: that holds it.
        steps: what was kept of earlier steps; what is of use for later ones is added.
        param: to be updated.
        group: that holds it.
        i: its place there, or None.

    Raises:
        TypeError, ValueError: not a parameter of this group of the optimizer; also as a step would.
    """
    if not isinstance(param, Tensor):
        raise checks.refusal(TypeError, "p", param, "must be one of this optimizer's parameters")
    if not any(group is held for held in optimizer.param_groups):
        raise checks.refusal(
            ValueError if isinstance(group, dict) else TypeError,
            "group",
            [*group] if isinstance(group, dict) else group,
            "must be one of this optimizer's param_groups, itself",
            "load_state_dict makes new ones: take the group from optimizer.param_groups at every call.",
        )
    if i is not None and not 0 <= checks.integer("i", i, 0) < len(group["params"]):
        raise checks.refusal(ValueError, "i", i, f"must be a place in the group, which has {len(group['params'])}")
    one = steps.get(param)
    if one is None:
        one = ParameterStep(optimizer, param)
    found = one.found()
    if found is None or found[0].maps[1] is not group or (i is not None and group["params"][i] is not param):
        where = "in the group" if i is None else f"group['params'][{i}]"
        raise ValueError(
            f"p of shape {tuple(param.shape)} is not {where}. Pass the group that holds it, and its place."
        )
    if param not in steps:
        present = {id(held) for each in optimizer.param_groups for held in each["params"]}
        for gone in [known for known in steps if id(known) not in present]:
            del steps[gone]
        steps[param] = one
    if param.grad is not None:
        one.run(found, lambda: _place(optimizer, param, found))


def _place(optimizer: Lion, param: Tensor, found: tuple[Group, int]) -> None:
    """Create all state at once if some of it may stay on the device, as that is decided for all together."""
    if optimizer._pager.moves(param.device):
        prepare.collect([found[0]], optimizer.state, optimizer._get_prefetcher(), found[1])  # which refuses before that
        optimizer.init_state()
