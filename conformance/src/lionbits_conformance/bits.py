"""Comparison of tensors bit for bit, with a readable difference."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


class Disagreement(AssertionError):
    """Results that should be equal are not; the message shows the first differing element of each tensor."""


def words(tensor: Tensor) -> Tensor:
    """Return the tensor's bits as integers, on the CPU, with one pattern for every NaN (payloads have no meaning)."""
    near = tensor.detach().cpu().contiguous()
    if near.is_floating_point():
        near = torch.where(near.isnan(), torch.full_like(near, torch.nan), near)
    return near.view(_WORDS[near.element_size()])


def equal(a: Tensor, b: Tensor) -> bool:
    """True if shape, dtype and bits agree."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(words(a), words(b))


def require_equal(got: Mapping[str, Tensor], want: Mapping[str, Tensor], context: str) -> None:
    """Raise :class:`Disagreement` unless both hold the same names with the same bits.

    Args:
        got: of the backend or optimizer under test.
        want: of the reference.
        context: begins the message: what was run, so that it can be run again.
    """
    if got.keys() != want.keys():
        raise Disagreement(f"{context}\n  names differ: got {sorted(got)}, want {sorted(want)}")
    lines = [line for name in want for line in _difference(name, got[name], want[name])]
    if lines:
        raise Disagreement("\n  ".join([context, *lines]))


def _difference(name: str, got: Tensor, want: Tensor) -> list[str]:
    if not isinstance(got, Tensor):
        return [f"{name}: got {got!r}, want a tensor: {want.dtype} of shape {tuple(want.shape)}"]
    if got.shape != want.shape or got.dtype != want.dtype:
        kinds = [f"{t.dtype} of shape {tuple(t.shape)}" for t in (got, want)]
        return [f"{name}: got {kinds[0]}, want {kinds[1]}"]
    a, b = words(got).reshape(-1), words(want).reshape(-1)
    differing = (a != b).nonzero().reshape(-1)
    if not len(differing):
        return []
    first = int(differing[0])
    where = [int(i) for i in torch.unravel_index(torch.tensor(first), got.shape)] if got.dim() else []
    digits = 2 * got.element_size()
    mask = (1 << (4 * digits)) - 1
    shown = [
        f"0x{int(w[first]) & mask:0{digits}x} = {t.detach().cpu().reshape(-1)[first].item()!r}"
        for w, t in ((a, got), (b, want))
    ]
    return [f"{name}{where}: got {shown[0]}, want {shown[1]}; {len(differing)} of {len(a)} elements differ"]
