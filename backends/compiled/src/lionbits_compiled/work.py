"""How the slots of a call become matrices; what of that a batch keeps for the next call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lionbits_reference import rounding
from lionbits_reference.spec import Plan, Slot

from .layouts import LARGEST_GATHERED, SMALL, Whole, layout, lies_ready, parts, state_keys, straddles, whole
from .matrices import Matrix, gathered, ready
from .scratch import Scratch


class Work:
    """The slots of a plan, sorted by how they are reached. Of theirs it keeps the small ones themselves, and no tensor.

    Args:
        plan: of all slots.
        slots: of a call, and of those to come.

    Attributes:
        gathered: small slots, many to a matrix.
        scratch: what matrices lie in that are copies, one at a time, and what is computed on the way.
    """

    def __init__(self, plan: Plan, slots: Sequence[Slot]) -> None:
        self.plan, self.scratch = plan, Scratch()
        self._keys = state_keys(plan)
        self._indices = [slot.index for slot in slots]
        self._salts: dict[tuple[int, int], Tensor] = {}
        self._single: dict[int, Whole | None] = {}
        small: dict[tuple[int, int], list[int]] = {}
        for place, slot in enumerate(slots):
            if slot.param.numel() == 0:
                continue
            found = layout(plan, slot)
            if max(slot.param.numel(), found.height * found.width // 8) < SMALL and not straddles(slot):
                small.setdefault((found.width, slot.start >> 33), []).append(place)
            else:
                self._single[place] = whole(plan, slot)
        for places in small.values():
            places.sort(key=lambda place: slots[place].param.shape)  # those of one shape are copied together
        self.gathered = [
            gathered(plan, run, [slots[place] for place in run], self.scratch)
            for (width, _), places in small.items()
            for run in _runs(places, [layout(plan, slots[place]).height for place in places], width)
        ]

    def matrices(self, slots: Sequence[Slot], *, drawing: bool) -> Iterator[Matrix | tuple[int, Slot]]:
        """All matrices of a call; where rows straddle, and lanes are drawn, the part of a slot (and its place) instead.

        One has to be done with before the next is asked for.
        """
        yield from self.gathered
        for place, known in self._single.items():
            if known is not None and known.takes(slots[place].grad):
                yield ready(self._keys, place, slots[place], known.layout)
                continue
            for part in parts(self.plan, slots[place]):
                if drawing and straddles(part):
                    yield place, part
                elif lies_ready(self.plan, part):
                    yield ready(self._keys, place, part, layout(self.plan, part))
                else:
                    yield gathered(self.plan, [place], [part], self.scratch)

    def salts(self, seed: int, purpose: int) -> Tensor:
        """int32, of each slot."""
        found = self._salts.get((seed, purpose))
        if found is None:
            salts = [rounding.word(rounding.salt(seed, index, purpose)) for index in self._indices]
            found = self._salts[seed, purpose] = torch.tensor(salts, dtype=torch.int32, device="cpu")
        return found


def _runs(places: Sequence[int], heights: Sequence[int], width: int) -> Iterator[list[int]]:
    """The places in runs that are little enough for one matrix each."""
    run: list[int] = []
    total = 0
    for place, height in zip(places, heights, strict=True):
        if run and (total + height) * width > LARGEST_GATHERED:
            yield run
            run, total = [], 0
        run.append(place)
        total += height
    if run:
        yield run
