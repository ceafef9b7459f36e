"""Matching of saved parameters with the optimizer's: by name if both sides have the same names, else by position.

A position is used only if no name contradicts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

Group = Mapping[str, Any]


def arranged(groups: Sequence[Group], saved: Sequence[Group]) -> list[Group]:
    """Return the groups of a state dict with their parameters in the order of the optimizer's groups.

    Args:
        groups: of the optimizer.
        saved: of the state dict, of checked form.

    Raises:
        ValueError: sizes differ and names do not help; a name stands in one place here and in another there; or a
            group of ours holds parameters of several groups whose settings differ.
    """
    own, theirs = names_of(groups), names_of(saved)
    if own is not None and theirs is not None and own != theirs:
        here, there = list(chain(*own)), list(chain(*theirs))
        if set(here) == set(there) and len(set(here)) == len(here) == len(there):
            ids = list(chain(*(group["params"] for group in saved)))
            parts = by_name(own, there, ids)
            settings = [common_settings(saved, part, without=("params", "param_names")) for part in parts]
            return [
                {**setting, "params": part, "param_names": names}
                for setting, part, names in zip(settings, parts, own, strict=True)
            ]
        _check_places(own, theirs)
    _check_sizes(groups, saved)
    return list(saved)


def names_of(groups: Iterable[Group]) -> list[list[str]] | None:
    """The names of each group's parameters, if every group has them."""
    found = [group.get("param_names") for group in groups]
    return None if any(names is None for names in found) else [list(names or ()) for names in found]


def with_current_names(group: Group) -> Group:
    """A group of a state dict with the names that its parameters have now.

    torch's tools for distributed checkpoints list parameters by name instead of by number. Where a model has grown
    since it was saved, ``set_optimizer_state_dict`` lists the present parameters, and ``param_names`` is that of the
    checkpoint.

    Args:
        group: of a state dict.
    """
    ids, names = group["params"], group.get("param_names")
    if not isinstance(ids, (list, tuple)) or not isinstance(names, (list, tuple)):
        return group
    listed = all(isinstance(key, str) for key in [*ids, *names])
    outdated = listed and set(ids) != set(names) and not set(ids).isdisjoint(names)
    return {**group, "param_names": list(ids)} if outdated else group


def by_name(own: Sequence[Sequence[str]], names: Sequence[str], ids: Sequence[Any]) -> list[list[Any]]:
    """For each group of the optimizer, the saved ids of its parameters.

    Args:
        own: the names of each group's parameters.
        names: of the saved parameters.
        ids: of the saved parameters, in the same order.

    Raises:
        ValueError: a name is there twice, or only one side has it.
    """
    if len(names) != len(ids) or len(set(names)) != len(names):
        raise ValueError(
            f"names has {len(names)} names, {len(set(names))} of them different; the state dict lists {len(ids)} "
            f"parameters."
        )
    keys = dict(zip(names, ids, strict=True))
    ours = set(chain(*own))
    if ours != keys.keys():
        alone = {"optimizer": sorted(ours - keys.keys())[:5], "state dict": sorted(keys.keys() - ours)[:5]}
        raise ValueError(f"optimizer and state dict hold different parameters; only one of them has {alone}.")
    return [[keys[name] for name in part] for part in own]


def common_settings(groups: Iterable[Group], keys: Sequence[Any], without: Sequence[str]) -> dict[str, Any]:
    """The settings of the saved groups that these parameters come from.

    Args:
        groups: of a state dict.
        keys: saved ids of parameters that one group of the optimizer holds.
        without: what of a group is no setting.

    Raises:
        ValueError: they come from groups that differ.
    """
    found: list[dict[str, Any]] = []
    for group in groups:
        if set(keys) & set(group["params"]):
            carried = {name: value for name, value in group.items() if name not in without}
            found += [] if any(_alike(carried, known) for known in found) else [carried]
    if len(found) > 1:
        raise ValueError(
            f"a group of the optimizer holds parameters of {len(found)} groups of the state dict, whose settings "
            f"differ: {found[:3]}. Split the optimizer's group likewise."
        )
    return found[0] if found else {}


def _alike(settings: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """True if two groups have the same settings; a tensor of several numbers is no setting and equals nothing."""
    try:
        return bool(settings == others)
    except (RuntimeError, ValueError):
        return False


def _check_sizes(groups: Sequence[Group], saved: Sequence[Group]) -> None:
    ours = [len(group["params"]) for group in groups]
    theirs = [len(group["params"]) for group in saved]
    if ours != theirs:
        raise ValueError(
            f"loaded state dict has a different number of parameter groups or parameters: the optimizer's groups "
            f"hold {ours} parameters, the state dict's {theirs}. Build the optimizer over the same groups first."
        )


def _check_places(own: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> None:
    """Refuse names that both sides have in different places: then no position can be trusted."""
    places = {name: (i, j) for i, names in enumerate(theirs) for j, name in enumerate(names)}
    for i, names in enumerate(own):
        for j, name in enumerate(names):
            if places.get(name, (i, j)) != (i, j):
                alone = {
                    "optimizer": sorted(set(chain(*own)) - places.keys())[:5],
                    "state dict": sorted(places.keys() - set(chain(*own)))[:5],
                }
                raise ValueError(
                    f"parameter {name!r} is at another place in the state dict, and its names are not all those of the "
                    f"optimizer: only one of them has {alone}. Rename them in the param_names of the state dict; "
                    f"without param_names parameters are matched by position."
                )
