"""Misspelt names, and the names that may have been meant."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import ParamSpec

from lionbits_reference.spec import checks

P = ParamSpec("P")


def meant(name: str, known: Sequence[str]) -> str:
    """Return a sentence: the name that ``name`` may be a misspelling of, or else all known names."""
    near = difflib.get_close_matches(name, known, 1, cutoff=0.7)
    return f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known)}."


def misspelt(names: Iterable[str], known: Sequence[str]) -> dict[str, str]:
    """Map each of ``names`` that looks misspelt to the one of ``known`` that it resembles.

    A name that contains a known one, as ``no_weight_decay`` does, is not misspelt.
    """
    strange = [name for name in names if not any(other in name for other in known)]
    guesses = {name: difflib.get_close_matches(name, known, 1, cutoff=0.85) for name in strange}
    return {name: near[0] for name, near in guesses.items() if near}


def known_arguments(init: Callable[P, None]) -> Callable[P, None]:
    """Decorate an ``__init__``: refuse an unknown keyword, and name the argument that may have been meant.

    From 3.13 on Python's own message does so, but names the class whose ``__init__`` the keyword was passed on to.
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
