"""Numbers of rows: those of their slots, and the inputs of their noise."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lionbits_reference import rounding
from lionbits_reference.spec import Hyper, Scalars

from . import compiling, functions
from .functions import Betas, Draw, Rates
from .matrices import Matrix
from .prepared import Prepared
from .scratch import Scratch


class Numbers:
    """The numbers of a call that its matrices ask for.

    Args:
        prepared: the slots.
        hyper, scalars: likewise.
    """

    def __init__(self, prepared: Prepared, hyper: Hyper, scalars: Scalars) -> None:
        betas = (hyper.b1, hyper.one_minus_b1, hyper.b2, hyper.one_minus_b2)
        self.betas, self.betas_in_memory = Betas(*betas), _in_memory(*map(compiling.bits, betas))
        self.scalars = scalars
        self._prepared, self._seed = prepared, hyper.seed
        self._keys: dict[tuple[str, int, int], Tensor] = {}

    def rates(self, matrix: Matrix) -> Rates:
        """Return learning rates and the other factors, by row. Most tensors of a model have the same at every step."""
        scratch = self._prepared.scratch
        if len(matrix.members) > 1:
            rates = torch.stack((self.scalars.lr, self.scalars.keep, self.scalars.grad_scale))
            return Rates(*by_row(scratch, "rates", matrix, rates))
        lr, keep, grad_scale = self._prepared.rates(self.scalars)
        (place,), height = matrix.members, matrix.height
        return Rates(
            scratch.filled("lr", lr[place], height),
            scratch.filled("keep", keep[place], height),
            scratch.filled("grad_scale", grad_scale[place], height),
        )

    def draw(self, matrix: Matrix, mode: str, purpose: int) -> Draw | None:
        """Return the inputs of noise, or None for nearest rounding. Each member has one upper half of pair numbers."""
        if mode == "nearest":
            return None
        keys = self._spread(mode, purpose, matrix.high)
        spread, phase = by_row(self._prepared.scratch, f"noise {purpose}", matrix, keys)
        return Draw(matrix.lows, spread, phase, *_columns(matrix.width))

    def _spread(self, mode: str, purpose: int, high: int) -> Tensor:
        """Return int32 (2, k): spread for this upper half of pair numbers, and phase."""
        found = self._keys.get((mode, purpose, high))
        if found is None:
            salts = self._prepared.salts(self._seed, purpose)
            words, phase = rounding.keys(mode, salts, self.scalars.step)
            known = words is salts  # whatever the step
            spread = self._prepared.spread(self._seed, purpose, high) if known else rounding.spread(high, words)
            found = self._keys[mode, purpose, high] = torch.stack((spread, phase))
        return found


def by_row(scratch: Scratch, name: str, matrix: Matrix, numbers: Tensor, *, own: bool = False) -> tuple[Tensor, ...]:
    """Expand numbers (f, k) of a call's slots, or of the matrix's ``own`` members, to f tensors of (rows, 1).

    They are in scratch of this name, until it is taken for the next matrix.
    """
    table, each = scratch.columns(name, numbers.dtype, numbers.shape[0], matrix.height)
    if len(matrix.members) == 1:
        place = 0 if own else matrix.members[0]
        table.copy_(numbers[:, place : place + 1])
    else:
        torch.index_select(numbers, 1, matrix.owners if own else matrix.owner_places, out=table)
    return each


@functools.lru_cache(maxsize=64)
def _in_memory(*bits: int) -> Betas:
    """Return the betas in memory, cached by their bits, as 0.0 and -0.0 are equal."""
    return Betas(*map(compiling.scalar, bits))


@functools.cache
def _columns(width: int) -> tuple[Tensor, Tensor]:
    half, odd = rounding.pairs(width, torch.device("cpu"))
    return functions.bitcast(half), functions.bitcast(odd)
