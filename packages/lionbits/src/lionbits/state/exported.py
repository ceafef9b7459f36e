"""Codes in state dicts that are copies: what is loaded into them is written back before state is read again.

Tensors of a state dict are the optimizer's own, so that ``torch.distributed.checkpoint.load`` into ``state_dict()``
loads the optimizer. Codes that may share bytes with codes of other ranks are not: there a state dict has one per byte.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lionbits import sharding
from lionbits_reference.spec import Format


class _Copy(NamedTuple):
    format: Format
    param: Tensor
    held: Tensor
    exported: Tensor


class ExportedCodes:
    """Copies of codes that the last state dict has, until state is read again."""

    def __init__(self) -> None:
        self._copies: list[_Copy] = []

    def note(self, format: Format, param: Tensor, held: Tensor, exported: Tensor) -> None:
        """Record that ``exported`` is a copy of the codes ``held``, on this rank, if it is one."""
        exported = sharding.local_tensor(exported)
        if exported.numel() and exported.shape != held.shape and sharding.codes_are_copied(format, param):
            self._copies.append(_Copy(format, param, held, exported))

    def write_back(self) -> None:
        """Write all copies back to the codes that are held, as they may have been loaded into, and forget them."""
        for format, param, held, exported in self._copies:
            held.copy_(sharding.packed_codes(format, param, exported))
        self.forget()

    def forget(self) -> None:
        """Forget the copies: state was loaded in another way."""
        self._copies = []
