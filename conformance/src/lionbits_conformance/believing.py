"""The backend ``believing``: the reference over a table that it makes once per batch and believes in from then on.

It stands for backends whose kernels read addresses from a table: a front end that does not notice what has moved is
found out by it, on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

import lionbits_reference
from lionbits_reference import decode, encode, supports
from lionbits_reference.spec import Hyper, Plan, Scalars, Slot

__all__ = ["absmax", "aligned", "decode", "encode", "name", "step", "supports"]

name = "believing"


def step(plan: Plan, slots: Sequence[Slot], hyper: Hyper, scalars: Scalars) -> None:
    """See :meth:`lionbits_reference.spec.Backend.step`."""
    lionbits_reference.step(plan, _table(slots), hyper, scalars)


def aligned(plan: Plan, slots: Sequence[Slot], hyper: Hyper, scalars: Scalars) -> Tensor:
    """See :meth:`lionbits_reference.spec.Backend.aligned`."""
    return lionbits_reference.aligned(plan, _table(slots), hyper, scalars)


def absmax(plan: Plan, slots: Sequence[Slot], hyper: Hyper, scalars: Scalars) -> Tensor:
    """See :meth:`lionbits_reference.spec.Backend.absmax`."""
    return lionbits_reference.absmax(plan, _table(slots), hyper, scalars)


def _table(slots: Sequence[Slot]) -> list[Slot]:
    """The slots as they were at first sight, with the gradients of now."""
    memo: dict[str, Any] = getattr(slots, "memo", {})
    table = memo.setdefault(name, [(slot.param.detach(), dict(slot.state)) for slot in slots])
    return [replace(slot, param=p, state=state) for slot, (p, state) in zip(slots, table, strict=True)]
