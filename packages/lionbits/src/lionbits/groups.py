"""Parameter groups: what they inherit, how overrides by name split them, what they may not say.

Groups are the only way in which settings differ between parameters.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from lionbits_reference.spec import Backend, checks

from . import select, settings, sharding, spelling
from .paging import Pager

#: Settings of the optimizer as a whole, which a parameter group may not have.
WHOLE = ("args", "is_paged", "page_budget", "page_size", "page_dir", "paged_compute", "backend", "overrides")

Group = dict[str, Any]
Overrides = dict[str, dict[str, Any]]


def checked_params(params: object) -> list[Any]:
    """Return the ``params=`` argument of an optimizer as a list; its items are not checked.

    Raises:
        TypeError, ValueError: it is not iterable, or empty; the message names what to pass instead, if that is clear.
    """
    way_out = ""
    if isinstance(params, torch.nn.Module):
        way_out = "Pass model.parameters() or model.named_parameters()."
    elif isinstance(params, torch.Tensor) or (isinstance(params, Mapping) and "params" in params):
        way_out = "Pass it in a list."
    elif isinstance(params, Mapping):
        way_out = "Pass its values(), or with names its items()."
    elif isinstance(params, (set, frozenset)):
        raise TypeError(  # in torch's words
            f"params={checks.shown(params)} is not accepted: optimizer parameters need to be organized in ordered "
            f"collections, but the ordering of tensors in sets will change between runs. Please use a list instead."
        )
    elif callable(params):
        way_out = "Call it."
    elif isinstance(params, Iterable) and not isinstance(params, str):
        return _some(params)
    raise TypeError(  # in torch's words
        f"params argument given to the optimizer should be an iterable of Tensors or dicts, but got "
        f"{checks.shown(params)}. {way_out}".rstrip()
    )


def _some(params: Iterable[Any]) -> list[Any]:
    listed = list(params)
    if not listed:
        way_out = "A generator, such as model.parameters(), is empty once it was used; call it anew."
        raise checks.refusal(ValueError, "params", listed, "is an empty parameter list", way_out)
    return listed


def checked_form(param_group: object) -> Group:
    """Return a copy of a group, its parameters in a list.

    Raises:
        TypeError: it is no dict with parameters. ValueError: one of them was computed from others, or is listed twice.
    """
    if not isinstance(param_group, dict) or "params" not in param_group:
        shown = list(param_group) if isinstance(param_group, dict) else param_group
        raise checks.refusal(TypeError, "param_group", shown, "must be a dict with 'params'")
    params = param_group["params"]
    if isinstance(params, torch.Tensor):
        return {**param_group, "params": [params]}
    if isinstance(params, set):  # torch refuses it, as its order would change between runs
        return dict(param_group)
    if not isinstance(params, Iterable):
        raise checks.refusal(TypeError, "params", params, "must be a tensor or an iterable of them")
    listed = list(params)
    first: dict[int, int] = {}
    for i, given in enumerate(listed):
        param = given[1] if isinstance(given, tuple) and len(given) == 2 else given
        if not isinstance(param, torch.Tensor):
            way_out = "Pass its parameters()." if isinstance(given, torch.nn.Module) else ""
            raise checks.refusal(TypeError, f"params[{i}]", given, "must be a tensor or a (name, tensor) pair", way_out)
        if not (param.is_leaf or param.retains_grad):
            way_out = "Pass the parameter itself: what .to(), .half() or an operation makes of it is another tensor."
            raise checks.refusal(ValueError, f"params[{i}]", param, "is a non-leaf tensor", way_out)
        if first.setdefault(id(param), i) != i:
            raise ValueError(  # in the words with which torch warns
                f"optimizer contains a parameter group with duplicate parameters: params[{i}] is params"
                f"[{first[id(param)]}], and a step updates a parameter once. Pass each parameter once."
            )
    return {**param_group, "params": listed}


def check_once(groups: Iterable[Group]) -> None:
    """Refuse a parameter that groups list twice: users can edit the lists after they were checked.

    Raises:
        ValueError: naming its shape; or a group has no list.
    """
    seen: set[int] = set()
    for group in groups:
        if "params" not in group:
            raise ValueError("a parameter group lacks 'params': each group must have a list of parameters.")
        for param in group["params"]:
            if id(param) in seen:
                raise ValueError(
                    f"a parameter of shape {tuple(param.shape)} is a duplicate: param_groups list it twice, and a step "
                    f"updates a parameter once. List each parameter once."
                )
            seen.add(id(param))


def check_overrides(overrides: Mapping[str, Mapping[str, Any]] | None, known: Mapping[str, Any]) -> Overrides:
    """A plain copy of ``overrides=``: name pattern (as the shell's, case matters) -> settings.

    Args:
        overrides: as given.
        known: settings that there are. A group may carry notes of other names; an override only changes settings.

    Raises:
        TypeError: not a mapping of names to mappings. ValueError: no such setting.
    """
    rule = 'must map name patterns to settings, such as {"*embed*": {"optim_bits": 32}}'
    if overrides is None:
        return {}
    if not isinstance(overrides, Mapping) or not all(
        isinstance(pattern, str) and isinstance(values, Mapping) for pattern, values in overrides.items()
    ):
        raise checks.mistyped("overrides", overrides, rule)
    for values in overrides.values():
        for key in values.keys() - known.keys() - set(WHOLE):
            hint = spelling.meant(key, tuple(known))
            raise checks.refusal(ValueError, "overrides", {key: values[key]}, "has no such setting", hint)
    return {pattern: dict(values) for pattern, values in overrides.items()}


def check_used(overrides: Overrides, groups: Iterable[Group]) -> None:
    """Refuse a pattern that matches no parameter: it is misspelt.

    Raises:
        ValueError: naming the pattern.
    """
    names = [name for group in groups for name in group.get("param_names", ())]
    for pattern in overrides:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            hint = f"There are {', '.join(names[:5])}, ..."
            raise checks.refusal(ValueError, "overrides", pattern, "matches no parameter name", hint)


def split(group: Group, overrides: Overrides) -> Iterator[Group]:
    """Yield the group as it is, or one group per set of overrides that match its parameters' names.

    If several patterns match a name, all apply, later ones over earlier ones.

    Raises:
        ValueError: there are overrides and the parameters have no names.
    """
    if not overrides or not group["params"]:
        yield group
        return
    parts: list[tuple[dict[str, Any], list[Any]]] = []
    for named in group["params"]:
        if not isinstance(named, tuple):
            hint = "Pass model.named_parameters() instead of model.parameters()."
            raise checks.refusal(ValueError, "overrides", overrides, "needs parameters with names", hint)
        values: dict[str, Any] = {}
        for pattern, extra in overrides.items():
            if fnmatch.fnmatchcase(named[0], pattern):
                values |= extra
        for same, members in parts:
            if same == values:
                members.append(named)
                break
        else:
            parts.append((values, [named]))
    for values, members in parts:
        yield {**group, **values, "params": members}


def inherit(group: Group, defaults: Mapping[str, Any]) -> None:
    """Fill in the settings that the group lacks, in place.

    A group with bits of its own does not inherit a format or block size that were meant for other bits. Numbers become
    Python's own, because ``torch.load(weights_only=True)`` reads no others back.

    A group with bits of its own does not inherit a format or block size that were meant for other bits. Numbers become
    Python's own, as ``torch.load(weights_only=True)`` reads no others back.

    Raises:
        ValueError: the group has a setting that is the optimizer's.
    """
    check_whole(group)
    if group.get("seed", defaults["seed"]) != defaults["seed"]:
        raise checks.refusal(ValueError, "seed", group["seed"], "is the optimizer's, not a parameter group's")
    if group.get("optim_bits", defaults["optim_bits"]) != defaults["optim_bits"]:
        group.setdefault("state_format", None)
        group.setdefault("block_size", None)
    if "block_wise" in group:
        group.setdefault("block_size", None)
    for key, value in defaults.items():
        group[key] = settings.plain(group.get(key, value))


def check_whole(group: Mapping[str, Any]) -> None:
    """Refuse a group that has a setting of the optimizer as a whole.

    Raises:
        ValueError: naming the setting.
    """
    for key in WHOLE:
        if key in group:
            hint = "Pass it to the constructor."
            raise checks.refusal(ValueError, key, group[key], "is the optimizer's, not a parameter group's", hint)


def check_optimizer(optimizer: object) -> None:
    """Refuse what is not an optimizer of this family.

    Raises:
        TypeError: naming what was given.
    """
    if isinstance(optimizer, type) or not hasattr(optimizer, "_step_cache"):
        hint = "Make one over the parameters first."
        raise checks.refusal(TypeError, "optimizer", optimizer, "must be an optimizer of lionbits", hint)


def holding(param: torch.Tensor, groups: Iterable[Group]) -> Group:
    """Return the group that holds the parameter.

    Raises:
        ValueError: it is in none.
    """
    for group in groups:
        if any(param is held for held in group["params"]):
            return group
    raise ValueError(f"param of shape {tuple(param.shape)} is not among this optimizer's parameters.")


def check(group: Group, backend: Backend | None, pager: Pager) -> None:
    """Refuse a group whose settings or parameters are not accepted, or that the backend cannot serve.

    Args:
        group: with all settings.
        backend: that was asked for, or None.
        pager: says where parameters are updated.

    Raises:
        TypeError, ValueError. RuntimeError: this torch has no way to save it.
    """
    settings.check(group)
    for param in group["params"]:
        if not param.requires_grad and param.grad is None:
            continue  # what is frozen is left alone, whatever it is: quantised weights, say
        try:
            plan = settings.plan(group, param, param.dtype)
            sharding.check_settings(group, plan, param)
        except (TypeError, ValueError) as error:
            raise type(error)(f"a parameter of shape {tuple(param.shape)}: {error}") from None
        if pager.moves(param.device):
            sharding.check_moving(param)
        device = pager.computes_on(param.device)
        if device.type != "meta":  # a step asks which backend serves, once the parameter holds values
            select.serving(backend, plan, device)


def name_format(group: Group) -> None:
    """Write the format and block size in place of None, so that a checkpoint says them."""
    chosen = settings.state_format(group)
    group["state_format"], group["block_size"] = chosen.name, chosen.block_size or None
