"""State dicts of an optimizer: return one; load one whole, or by name the parameters that the optimizer has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from torch.optim import Optimizer

from lionbits import settings, sharding
from lionbits_reference.spec import checks

from . import copies, form, matching

if TYPE_CHECKING:
    from lionbits.optimizer import Lion

Group = Mapping[str, Any]
_NOT_SETTINGS = ("params", "param_names")


class LoadedKeys(NamedTuple):
    """Names of the parameters that ``load_state_dict(..., strict=False)`` loaded and did not load.

    Attributes:
        matched_keys: parameters that optimizer and state dict both have: their state is that of the state dict.
        missing_keys: parameters that only the optimizer has: their state is what it was.
        unexpected_keys: parameters that only the state dict has: they were left out.
    """

    matched_keys: list[str]
    missing_keys: list[str]
    unexpected_keys: list[str]


def taken(optimizer: Lion, torchs: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the state dict for :meth:`lionbits.Lion.state_dict`.

    Args:
        optimizer: whose state dict it is.
        torchs: ``state_dict`` as torch has it, of this optimizer.
    """
    copies.recount(optimizer)
    params = (param for group in optimizer.param_groups for param in group["params"])
    if optimizer.state and any(map(sharding.distributed, params)):
        optimizer.init_state()
    handle = optimizer.register_state_dict_post_hook(form.add_version, prepend=True)
    try:
        return torchs()
    finally:
        handle.remove()


def load(
    optimizer: Lion, torchs: Callable[[dict[str, Any]], None], state_dict: Mapping[str, Any], *, strict: bool
) -> LoadedKeys | None:
    """Load a state dict for :meth:`lionbits.Lion.load_state_dict`.

    Args:
        optimizer: that loads.
        torchs: ``load_state_dict`` as torch has it, of this optimizer.
        state_dict, strict: as given.
    """
    form.check_mapping(state_dict)
    checks.flag("strict", strict)
    sealing, by_name = form.StateLoader(optimizer._backend, optimizer._pager), ByName()
    hooks = (sealing,) if strict else (by_name, sealing)
    handles = [optimizer.register_load_state_dict_pre_hook(hook) for hook in hooks]  # after the user's hooks
    try:
        torchs(dict(state_dict))
    finally:
        for handle in handles:
            handle.remove()
    sealing.complete_weights()
    optimizer._get_prefetcher().exported.forget()
    optimizer._get_prefetcher().formats.note_all(optimizer.param_groups, optimizer.state)
    if optimizer._step_cache is not None:
        optimizer._step_cache = optimizer._step_cache.recorded()  # the state that others knew is free to go
    for step in (optimizer._parameter_steps or {}).values():
        step.forget()
    if optimizer._in_backward is not None:
        optimizer._in_backward.forget()
    return by_name.keys


class ByName:
    """A hook of ``load_state_dict()`` that rearranges a state dict by name into one of the optimizer's parameters."""

    keys: LoadedKeys | None = None

    def __call__(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return a complete state dict: parameters that it lacks keep their present state. Neither argument is changed.

        Raises:
            TypeError, ValueError: its form is no state dict's; names are missing, or there twice; no name matches.
        """
        saved = form.checked_form(state_dict)
        form.check_origin(state_dict)
        groups = optimizer.param_groups
        own, theirs = _names("optimizer", groups), _names("state dict", saved)
        here, there = list(chain(*own)), list(chain(*theirs))
        keys = dict(zip(there, form.checked_ids(state_dict, saved), strict=True))
        found = LoadedKeys(
            [name for name in here if name in keys],
            [name for name in here if name not in keys],
            [name for name in there if name not in set(here)],
        )
        if not found.matched_keys:
            raise ValueError(
                f"no parameter of the optimizer has the name of one in the state dict: the optimizer has {here[:3]}, "
                f"the state dict {there[:3]}. Rename those in the param_names of its groups (a wrapper's prefix, say)."
            )
        ours = {name: f"{name} of the optimizer" for name in found.missing_keys}
        arranged = [_arranged(i, *pair, saved, keys | ours) for i, pair in enumerate(zip(groups, own, strict=True))]
        seeds = [group["seed"] for group in saved if "seed" in group]
        for group in arranged if seeds else ():
            if set(group["params"]) <= set(ours.values()):
                group["seed"] = seeds[0]  # an optimizer has one
        left_out = {keys[name] for name in found.unexpected_keys}
        state = {key: value for key, value in state_dict["state"].items() if key not in left_out}
        state |= _kept(cast("Lion", optimizer), own, ours)
        self.keys = found
        return {**state_dict, "state": state, "param_groups": arranged}


def _names(whose: str, groups: Sequence[Group]) -> list[list[str]]:
    """The names of each group's parameters.

    Raises:
        ValueError: there are none, or one is there twice.
    """
    names = matching.names_of(groups)
    if names is None:
        hint = {
            "optimizer": "Make it over model.named_parameters()",
            "state dict": "Save it from an optimizer over model.named_parameters(), or add to each of its groups "
            "'param_names', a list in the order of its 'params'",
        }
        raise ValueError(f"strict=False matches parameters by name, and the {whose} has no names. {hint[whose]}.")
    every = list(chain(*names))
    twice = sorted({name for name in every if every.count(name) > 1}) if len(set(every)) != len(every) else []
    if twice:
        raise ValueError(f"strict=False matches parameters by name, and the {whose} has {twice[:5]} twice. Rename one.")
    return names


def _arranged(i: int, group: Group, names: list[str], saved: Sequence[Group], ids: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group of the optimizer with the settings of the saved groups that its parameters come from, if any.

    Args:
        i, group: its place, and the group.
        names: of its parameters.
        saved: groups of the state dict.
        ids: of all parameters, by name.

    Raises:
        ValueError: those groups differ, or hold momentum in another format.
    """
    listed = {"params": [ids[name] for name in names], "param_names": names}
    own = {key: value for key, value in group.items() if key not in _NOT_SETTINGS}
    if set(listed["params"]).isdisjoint(chain(*(there["params"] for there in saved))):
        return own | listed
    found = matching.common_settings(saved, listed["params"], without=_NOT_SETTINGS)
    if all(key in found for key in form.FORMAT_KEYS):
        here, there = settings.state_format(own), settings.state_format(found)
        if here != there:
            asked = {key: found[key] for key in form.FORMAT_KEYS}
            raise ValueError(
                f"group {i} of the optimizer holds momentum in {here}, the state dict in {there}. Build the optimizer "
                f"with {asked}; or lionbits.convert the state dict with an optimizer over all of its parameters first."
            )
    return found | listed


def _kept(optimizer: Lion, own: Sequence[Sequence[str]], ours: Mapping[str, str]) -> dict[str, Any]:
    """The state of parameters that the state dict lacks, in the form of a checkpoint."""
    copies.recount(optimizer)
    return {
        ours[name]: form.export_state(group, param, optimizer.state[param])
        for group, names in zip(optimizer.param_groups, own, strict=True)
        for param, name in zip(group["params"], names, strict=True)
        if name in ours and optimizer.state.get(param)
    }
