"""Copies and pickles of an optimizer: what they keep, and how a copy is completed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from lionbits import groups, paging, select
from lionbits.state import counts

from . import form

if TYPE_CHECKING:
    from lionbits.optimizer import Lion


def recount(optimizer: Lion) -> None:
    """Complete the state of all steps so far: wait for copies, and count the replays of captured graphs.

    Raises:
        ValueError: settings were edited so that codes would be read in another format.
    """
    optimizer._get_prefetcher().settle()
    if optimizer._step_cache is not None:
        optimizer._step_cache.recount()
    for step in (optimizer._parameter_steps or {}).values():
        step.recount()
    if optimizer._in_backward is not None:
        optimizer._in_backward.recount()
    counts.in_tensors(optimizer.state)
    optimizer._get_prefetcher().formats.check_all(optimizer.param_groups, optimizer.state)


def kept(optimizer: Lion) -> dict[str, Any]:
    """Return what an optimizer has beside torch's parts, to copy or pickle. A backend is kept by its module's name."""
    recount(optimizer)
    backend = None if optimizer._backend is None else cast(Any, optimizer._backend).__name__
    held = {key: vars(optimizer)[key] for key in ("_pager", "_overrides", "_skipped")}
    return held | {"_backend": backend, "state": counts.apart(optimizer.state)}


def take_up(optimizer: Lion, state: Mapping[str, Any]) -> None:
    """Complete an optimizer that was given ``state`` by a copy, by a pickle or by loading."""
    optimizer.defaults.pop("differentiable", None)  # torch puts it there, as one of its own optimizers' settings
    if isinstance(optimizer._backend, str):
        optimizer._backend = select.requested(importlib.import_module(optimizer._backend))
    # a checkpoint has a seed of its own
    optimizer.defaults["seed"] = optimizer.param_groups[0].get("seed", optimizer.defaults["seed"])
    for group in optimizer.param_groups:
        groups.inherit(group, optimizer.defaults)
    form.reveal(optimizer.state)
    if "_pager" in state:  # unpickled or copied, rather than loaded
        params = [param for param in optimizer.state if isinstance(param, Tensor)]
        copies = paging.adopt(optimizer._pager, [(param.device, optimizer.state[param]) for param in params])
        optimizer.state.update(zip(params, copies, strict=True))
        optimizer._get_prefetcher().formats.note_all(optimizer.param_groups, optimizer.state)
