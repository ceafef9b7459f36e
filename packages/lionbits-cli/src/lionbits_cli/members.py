"""The parameters of a model, for counting: from shapes on the command line, or from a function that makes the model."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lionbits_reference.spec import PARAM_DTYPES

from .console import CommandError


class Member(NamedTuple):
    """A parameter: its name, or nothing; whether it learns."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    trained: bool = True

    @property
    def elements(self) -> int:
        """How many it has."""
        return math.prod(self.shape)


def from_shapes(text: str, dtype: torch.dtype) -> list[Member]:
    """Members of a text such as ``4096x8,11008x4096``.

    Raises:
        CommandError: naming the part that is no shape.
    """
    return [Member("", _shape(part), dtype) for part in text.split(",")]


def _shape(part: str) -> tuple[int, ...]:
    sizes = part.strip().lower().split("x")
    if not all(size.isascii() and size.isdigit() for size in sizes) or math.prod(map(int, sizes)) >= 2**63:
        raise CommandError(f"--shapes has {part!r}; a shape is sizes joined by x, as in 4096x8,11008x4096")
    return tuple(map(int, sizes))


def from_function(target: str) -> list[Member]:
    """Members of what ``module:function`` returns: a module, or parameters with or without names.

    Raises:
        CommandError: it cannot be imported or called, or returns something else.
    """
    module, _, function = target.partition(":")
    if not module or not function:
        raise CommandError(f"{target!r} is not module:function, such as mymodel:build")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        made = getattr(importlib.import_module(module), function)()
        named = made.named_parameters() if isinstance(made, nn.Module) else made
        return _members(target, list(named))
    except CommandError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise CommandError(f"{target} failed with {type(error).__name__}: {error}") from error


def _members(target: str, named: Iterable[object]) -> list[Member]:
    found: list[Member] = []
    for each in named:
        name, param = each if isinstance(each, tuple) and len(each) == 2 else ("", each)
        if not isinstance(param, Tensor):
            raise CommandError(f"{target} returned {type(param).__name__}; it must return a torch.nn.Module")
        if param.requires_grad and param.dtype not in PARAM_DTYPES:
            raise CommandError(f"{target}: {name or 'a parameter'} is {param.dtype}, which no Lion of lionbits updates")
        found.append(Member(str(name), tuple(param.shape), param.dtype, param.requires_grad))
    return found


def shown(members: Sequence[Member]) -> str:
    """Names of some members, the first three."""
    names = [member.name for member in members if member.name]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
