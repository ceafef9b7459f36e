"""Atomic operations: threads that meet at an address take turns."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from .floats import bits
from .types import TYPES, Array, Type

_KNOWN = {
    "add": ("u32", "s32", "u64", "f32", "f64"),
    "min": ("u32", "s32", "u64", "s64"),
    "max": ("u32", "s32", "u64", "s64"),
    **dict.fromkeys(("and", "or", "xor", "exch", "cas"), ("b32", "b64")),
}

#: What atomics and ``redux`` do with two numbers.
REDUCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def known(operation: str, type: str) -> bool:
    """True for an operation and a type that are executed."""
    return type in _KNOWN.get(operation, ()) and type in TYPES


def combine(
    operation: str,
    type: Type,
    addresses: Array,
    values: list[Array],
    load: Callable[[Array], Array],
    store: Callable[[Array, Array], None],
    random: np.random.Generator | None,
) -> Array:
    """Execute an atomic for threads at addresses; return what each found there.

    Args:
        operation: as ``add``.
        type: of the operands.
        addresses: of the threads.
        values: operands; of ``cas`` what is compared, then what is stored.
        load, store: access the addresses of some threads, by their numbers.
        random: the order of threads; None for that of their numbers.
    """
    order = np.arange(len(addresses)) if random is None else random.permutation(len(addresses))
    order = order[np.argsort(addresses[order], kind="stable")]
    ordered = addresses[order]
    first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    turn = np.arange(len(ordered)) - np.repeat(first, np.diff(np.append(first, len(ordered))))
    by_turn = np.argsort(turn, kind="stable")
    bounds = np.searchsorted(turn[by_turn], np.arange(int(turn.max(initial=-1)) + 2))
    before = np.zeros(len(addresses), dtype=type.unsigned)
    for begin, end in pairwise(bounds):
        now = order[by_turn[begin:end]]
        found = before[now] = load(now)
        store(now, _result(operation, type, found, [value[now] for value in values]))
    return before


def _result(operation: str, type: Type, found: Array, values: list[Array]) -> Array:
    if operation == "exch":
        return values[0]
    if operation == "cas":
        return np.where(found == values[0], values[1], found)
    result = np.asarray(
        REDUCTIONS[operation](found.view(type.numbers), np.ascontiguousarray(values[0]).view(type.numbers))
    )
    return bits(result) if type.kind == "f" else result.view(type.unsigned)
