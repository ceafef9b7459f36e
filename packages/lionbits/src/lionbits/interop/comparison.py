"""The loss of a conversion: momentum before and after, parameter by parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lionbits_reference.spec import binary64

from .imported import DecodedState, ImportedStateDict


@dataclass(frozen=True)
class Difference:
    """One parameter's momentum before and after.

    Attributes:
        name: of the parameter, or its number.
        shape: of the parameter.
        before: how it was held.
        after: how it is.
        exact: elements that are equal.
        largest: the largest difference, in units of the root mean square of the momentum before.
        rms: the root mean square difference, in the same units. Both are 0 where all is equal.
    """

    name: str
    shape: tuple[int, ...]
    before: str
    after: str
    exact: int
    largest: float
    rms: float

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def differences(
    before: ImportedStateDict, after: ImportedStateDict, pairs: Iterable[tuple[Any, Any]]
) -> list[Difference]:
    """Return one difference for each parameter that has state on both sides.

    Args:
        before, after: readings of the same parameters.
        pairs: (id before, id after) of each.

    Raises:
        ValueError: shapes differ.
    """
    known = after.names or before.names
    names = {} if known is None else dict(zip((after if after.names else before).ids, known, strict=True))
    found = []
    for there, here in pairs:
        if there in before.held and here in after.held:
            name = str(names.get(here if after.names else there, here))
            found.append(_difference(name, before.held[there], after.held[here]))
    return found


def _difference(name: str, before: DecodedState, after: DecodedState) -> Difference:
    if before.shape != after.shape:
        raise ValueError(f"{name} has shape {tuple(before.shape)} before and {tuple(after.shape)} after.")
    old = binary64(before.exp_avg())
    new = binary64(after.exp_avg().to(old.device))
    gap = (new - old).abs()
    exact = int((gap == 0).sum())
    largest = rms = 0.0
    if exact < gap.numel():
        unit = old.square().mean().sqrt()
        largest, rms = float(gap.amax() / unit), float(gap.square().mean().sqrt() / unit)
    return Difference(name, tuple(old.shape), before.form, after.form, exact, largest, rms)
