"""Readers of all peers, by the name that :func:`lionbits.interop.recognise` returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import bitsandbytes, exp_avg, flashlion, optax, qlion
from .imported import ImportedStateDict

_PLAIN: dict[str, Callable[[Mapping[str, Any]], ImportedStateDict]] = {
    "qlion": qlion.read,
    "lion-pytorch": exp_avg.LION_PYTORCH.read,
    "timm": exp_avg.TIMM.read,
    "pytorch-optimizer": exp_avg.PYTORCH_OPTIMIZER.read,
    "optimi": exp_avg.OPTIMI.read,
    "flashlion": flashlion.read,
}
PEERS = ("bitsandbytes", *_PLAIN, "optax")


def read(state_dict: Any, peer: str, *, written_on: str | None = None, sizes: Sequence[int] = ()) -> ImportedStateDict:
    """Decode a peer's state dict.

    Args:
        state_dict: the peer's.
        peer: one of ``PEERS``.
        written_on: for bitsandbytes.
        sizes: for optax: how many parameters each group has.

    Raises:
        TypeError, ValueError: it has not the form that it should have.
    """
    if peer == "bitsandbytes":
        return bitsandbytes.read(state_dict, written_on)
    return optax.read(state_dict, sizes) if peer == "optax" else _PLAIN[peer](state_dict)
