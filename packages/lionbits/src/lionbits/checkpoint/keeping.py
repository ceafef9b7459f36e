"""Settings after loading a checkpoint: the checkpoint's, as in torch, or the optimizer's where ``keep`` names them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from lionbits import advice, groups, settings, spelling
from lionbits_reference.spec import checks

if TYPE_CHECKING:
    from lionbits.optimizer import Lion

Group = Mapping[str, Any]

#: Settings that schedules change. What a checkpoint has of them is where a run was, not how it was set up.
SCHEDULED = ("lr", "weight_decay", "betas")

#: Keys of a group that must not contradict a setting: a schedule's start, QLion's name for betas.
BESIDE = {"lr": ("initial_lr",), "betas": ("momentum_first",), "momentum_first": ("betas",)}


def checked(keep: object, optimizer: Lion) -> list[str]:
    """Return the names in ``keep``, and those that are kept together with them.

    Raises:
        TypeError: it is no list of names. ValueError: a name is no setting of a group.
    """
    rule, way_out = "must list names of settings", 'Pass keep=["param_rounding", "lr"], say.'
    if isinstance(keep, str) or not isinstance(keep, Iterable):
        raise checks.refusal(TypeError, "keep", keep, rule, way_out)
    known = (*settings.NAMES, *optimizer._own_settings)
    found: list[str] = []
    for name in keep:
        if not isinstance(name, str):
            raise checks.refusal(TypeError, "keep", name, rule, way_out)
        if name in groups.WHOLE:
            raise checks.refusal(ValueError, "keep", name, "is the optimizer's in any case", "Leave it out.")
        if name not in known:
            raise checks.refusal(ValueError, "keep", name, "is no setting", spelling.meant(name, known))
        found += [name, *BESIDE.get(name, ())]
    return found


def with_ours(saved: Group, ours: Group, names: Iterable[str]) -> dict[str, Any]:
    """Return a saved group with the named settings of our group; one that our group lacks is removed."""
    kept = {key: value for key, value in saved.items() if key not in names}
    return kept | {key: ours[key] for key in names if key in ours}


def tell_of_replaced(optimizer: Lion, completed: Sequence[Group]) -> None:
    """Warn of settings that the optimizer was given and that a checkpoint is about to replace.

    A setting counts as given if it differs from the default of its class. A schedule's settings are not named.

    Given is what differs from the default of its class. A schedule's settings are not named.

    Args:
        optimizer: that loads.
        completed: the groups of the checkpoint, in its order.
    """
    names = [*settings.NAMES, *optimizer._own_settings]
    names = [name for name in names if name not in SCHEDULED]
    differing: dict[str, tuple[Any, Any]] = {}
    for ours, saved in zip(optimizer.param_groups, completed, strict=True):
        for name in names:
            if name in ours and name in saved and ours[name] != saved[name]:
                differing.setdefault(name, (ours[name], saved[name]))
    if not differing:
        return
    default = _defaults(optimizer)
    replaced = {name: pair for name, pair in differing.items() if pair[0] != default.get(name, pair[0])}
    if replaced:
        shown = [f"{name}={checks.shown(here)} ({checks.shown(there)})" for name, (here, there) in replaced.items()]
        advice.warn(
            f"load_state_dict takes settings from the checkpoint. This optimizer was given {', '.join(shown)}; in "
            f"parentheses is what the checkpoint has, and what counts from now on. To keep yours, load "
            f"lionbits.convert(state_dict, optimizer, keep={list(replaced)})."
        )


def _defaults(optimizer: Lion) -> dict[str, Any]:
    """Return the settings of an optimizer of this class that is given none."""
    first, *others = [
        {name: parameter.default for name, parameter in inspect.signature(cls.__init__).parameters.items()}
        for cls in reversed(type(optimizer).__mro__)
        if issubclass(cls, Optimizer) and cls is not Optimizer and "__init__" in vars(cls)
    ]
    own: dict[str, Any] = {}
    for defaults in others:
        own |= {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}
    return {**first, **optimizer._fixed, **optimizer._translated(own)}
