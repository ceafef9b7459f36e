"""Misspelt names: which one may have been meant."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import ParamSpec

from lionbits_reference.spec import checks

P = ParamSpec("P")


def meant(name: str, known: Sequence[str]) -> str:
    """A sentence: what ``name`` may be a misspelling of, or else all that there is."""
    near = difflib.get_close_matches(name, known, 1, cutoff=0.7)
    return f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known)}."


def misspelt(names: Iterable[str], known: Sequence[str]) -> dict[str, str]:
    """Those ``names`` that look like one of ``known``, and which one.

    What has a known name within it, as ``no_weight_decay`` has, is a name of its own.
    """
    strange = [name for name in names if not any(other in name for other in known)]
    guesses = {name: difflib.get_close_matches(name, known, 1, cutoff=0.85) for name in strange}
    return {name: near[0] for name, near in guesses.items() if near}


def known_arguments(init: Callable[P, None]) -> Callable[P, None]:
    """Decorates an ``__init__``: a keyword that is no argument is refused with the argument that may have been meant.

    Python's own message says so from 3.13 on, and names the class whose ``__init__`` the keyword was handed on to.
    """
    ours = inspect.signature(init).parameters

    @functools.wraps(init)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        for name in kwargs.keys() - ours.keys():
            cls = type(args[0])
            every = inspect.signature(cls).parameters | ours
            known = [key for key, p in every.items() if p.kind is not p.VAR_KEYWORD and key != "self"]
            value = checks.shown(kwargs[name])
            raise TypeError(
                f"{cls.__name__} got an unexpected keyword argument {name!r}, {value}. {meant(name, known)}"
            )
        init(*args, **kwargs)

    return checked
