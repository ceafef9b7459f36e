"""optax's Lion: ``count`` and ``mu``, a tree of arrays like the parameters. Any array that numpy can read will do."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lionbits_reference.spec import checks

from .imported import DecodedState, ImportedStateDict


def read(state: object, sizes: Sequence[int]) -> ImportedStateDict:
    """Read optax's state; ``sizes`` are the numbers of parameters of the optimizer's groups."""
    mu, count = _member(state, "mu"), _member(state, "count")
    whole = getattr(count, "item", lambda: count)()
    if not isinstance(whole, numbers.Integral):
        raise checks.refusal(TypeError, "state.count", count, "must be a whole number")
    if isinstance(mu, Mapping):
        named = dict(_leaves(mu))
        groups: list[dict[str, Any]] = [{"params": list(named), "param_names": list(named)}]
        arrays: list[tuple[Any, Any]] = list(named.items())
    else:
        if not isinstance(mu, (list, tuple)):
            raise checks.refusal(TypeError, "state.mu", mu, "must be a mapping of names, or a list, of arrays")
        arrays = list(enumerate(mu))
        starts = [sum(sizes[:i]) for i in range(len(sizes))] if sum(sizes) == len(mu) else [0]
        ends = [*starts[1:], len(mu)]
        groups = [{"params": list(range(start, end))} for start, end in zip(starts, ends, strict=True)]
    return ImportedStateDict({key: _held(array, int(whole)) for key, array in arrays}, groups)


def write(reading: ImportedStateDict) -> dict[str, Any]:
    """Return ``count`` and ``mu`` of optax's state; see :func:`lionbits.interop.to_optax`."""
    names, ids = reading.names, reading.ids
    arrays = [reading.held[key].exp_avg().cpu().numpy() if key in reading.held else None for key in ids]
    missing = [key for key in ids if key not in reading.held]
    if missing:
        raise ValueError(f"parameters {missing[:5]} have no state yet; optax has momentum for every parameter.")
    count = max((held.step for held in reading.held.values()), default=0)
    return {"count": count, "mu": arrays if names is None else dict(zip(names, arrays, strict=True))}


def _member(state: object, name: str) -> Any:
    if isinstance(state, Mapping) and name in state:
        return state[name]
    if hasattr(state, name):
        return getattr(state, name)
    hint = "In a chain it is the element of type ScaleByLionState."
    raise checks.refusal(TypeError, "state", state, f"must have {name!r}, as a key or an attribute", hint)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Arrays of a tree under torch's names: the keys on the way, joined by dots."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _held(array: Any, count: int) -> DecodedState:
    form = str(getattr(array, "dtype", "array")).removeprefix("torch.")
    if not isinstance(array, Tensor):
        import numpy as np

        array = torch.from_numpy(np.array(array, dtype=np.float32))
    return DecodedState(array.shape, lambda: array, form, step=count)
