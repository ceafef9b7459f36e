"""The backend ``address_caching``: the reference over tensors that it looks up when it prepares, and never again.

It stands for backends whose kernels read addresses from a table. A front end that does not notice that a tensor has
moved fails with it, on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

import lionbits_reference
from lionbits_reference import absmax, aligned, decode, encode, step, supports
from lionbits_reference.spec import Plan, Prepared, Slot

__all__ = ["absmax", "aligned", "decode", "encode", "name", "prepare", "step", "supports"]

name = "address_caching"


def prepare(plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]) -> Prepared:
    """Prepare slots of the present tensors, which later changes of the caller's slots do not reach."""
    fixed = [Slot(s.param.detach(), dict(s.state), s.index, s.start, s.pitch) for s in slots]
    return lionbits_reference.prepare(plan, fixed, grads)
