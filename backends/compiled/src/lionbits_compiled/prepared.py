"""The sorting of slots into matrices, and the parts of it that are kept from call to call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lionbits_reference import rounding
from lionbits_reference.spec import Plan, Scalars

from .bound import BoundSlot
from .layouts import (
    LARGEST_GATHERED,
    SMALL,
    Layout,
    Whole,
    crosses_2_33,
    is_zero_copy,
    layout,
    parts,
    same_shape_batches,
    state_keys,
    whole,
)
from .matrices import Matrix, gathered, ready
from .scratch import Scratch


class Prepared:
    """The slots of a plan, sorted by how they become matrices. It keeps no tensor of theirs.

    Args:
        plan: of all slots.
        slots: with gradients like those of the calls to come.

    Attributes:
        gathered: small slots, many to a matrix.
        scratch: what matrices lie in that are copies, one at a time, and what is computed on the way.
    """

    def __init__(self, plan: Plan, slots: Sequence[BoundSlot]) -> None:
        self.plan, self.slots, self.scratch = plan, slots, Scratch()
        self._keys = state_keys(plan)
        self._indices = [slot.index for slot in slots]
        self._salts: dict[tuple[int, int], Tensor] = {}
        self._spreads: dict[tuple[int, int, int], Tensor] = {}
        self._read: tuple[Scalars, list[list[float]]] | None = None
        self._single: dict[int, Whole | None] = {}
        small: list[int] = []
        for place, slot in enumerate(slots):
            if slot.param.numel() == 0:
                continue
            found = layout(plan, slot)
            if max(slot.param.numel(), found.height * found.width // 8) < SMALL and not crosses_2_33(slot):
                small.append(place)
            else:
                self._single[place] = whole(plan, slot)
        small.sort(key=lambda place: slots[place].param.shape)  # those of one shape are copied together
        self.gathered = list(self._gathered(small, [slots[place] for place in small]))

    def _gathered(self, places: Sequence[int], slots: Sequence[BoundSlot]) -> Iterator[Matrix]:
        """Yield as few matrices as possible of small slots."""
        batched = same_shape_batches(self.plan, slots)
        alike: dict[tuple[object, ...], list[tuple[int, BoundSlot, Layout]]] = {}
        for place, slot in zip(places, slots, strict=True):
            shape = slot.param.shape if slot.param.shape in batched else None
            found = layout(self.plan, slot) if shape is None else Layout(1, shape.numel(), shape.numel())
            alike.setdefault((shape, found.width, slot.start >> 33), []).append((place, slot, found))
        for some in alike.values():
            for run in _runs([found for _, _, found in some]):
                members, theirs, layouts = map(list, zip(*some[run], strict=True))
                yield gathered(self.plan, members, theirs, layouts, self.scratch)

    def matrices(self, *, drawing: bool) -> Iterator[Matrix | tuple[int, BoundSlot]]:
        """Yield all matrices of a call. If noise is drawn, a part of a slot that crosses 2^33 replaces its matrix.

        Such a part comes with the slot's place. A matrix must be done with before the next is asked for.
        """
        slots = self.slots
        yield from self.gathered
        for place, known in self._single.items():
            if known is not None and known.takes(slots[place].grad):
                yield ready(self._keys, place, slots[place], known.layout)
                continue
            for part in parts(self.plan, slots[place]):
                if drawing and crosses_2_33(part):
                    yield place, part
                elif is_zero_copy(self.plan, part):
                    yield ready(self._keys, place, part, layout(self.plan, part))
                else:
                    yield gathered(self.plan, [place], [part], [layout(self.plan, part)], self.scratch)

    def rates(self, scalars: Scalars) -> list[list[float]]:
        """Return ``lr``, ``keep`` and ``grad_scale`` of each slot.

        They are cached: to read them takes a tenth of a step when caches are cold.
        """
        if self._read is None or self._read[0] is not scalars:
            self._read = scalars, [rate.tolist() for rate in (scalars.lr, scalars.keep, scalars.grad_scale)]
        return self._read[1]

    def salts(self, seed: int, purpose: int) -> Tensor:
        """Return the salt of each slot, int32."""
        found = self._salts.get((seed, purpose))
        if found is None:
            salts = [rounding.word(rounding.salt(seed, index, purpose)) for index in self._indices]
            found = self._salts[seed, purpose] = torch.tensor(salts, dtype=torch.int32, device="cpu")
        return found

    def spread(self, seed: int, purpose: int, high: int) -> Tensor:
        """Return, for each slot, its salt mixed with the upper half of the numbers of pairs, int32."""
        found = self._spreads.get((seed, purpose, high))
        if found is None:
            found = self._spreads[seed, purpose, high] = rounding.spread(high, self.salts(seed, purpose))
        return found


def _runs(layouts: Sequence[Layout]) -> Iterator[slice]:
    """Yield runs of slots, of layouts of one width, that are each small enough for one matrix."""
    first = total = 0
    for j, found in enumerate(layouts):
        size = found.height * found.width
        if j > first and total + size > LARGEST_GATHERED:
            yield slice(first, j)
            first, total = j, 0
        total += size
    yield slice(first, len(layouts))
