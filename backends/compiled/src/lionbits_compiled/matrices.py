"""Slots as matrices whose rows are blocks: views if the slots are laid out so, else copies in scratch.

Copies are padded with zeros, which change nothing, and are written back afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from lionbits_reference.rounding import word
from lionbits_reference.spec import Plan

from .bound import BoundSlot
from .copies import Copies
from .layouts import Layout, are_rows, state_keys
from .scratch import Scratch


@dataclass(eq=False)
class Matrix:
    """Some slots, or parts of some, as rows.

    Attributes:
        members: their places in the call.
        slots: the slots or parts themselves.
        layouts: of each.
        tensors: ``param``, ``grad``, state by name, contiguous, a block of each in a row. ``stored`` is the parameter
            as it is stored, if ``param`` is float32 because it takes more than rounding to nearest.
        copies: of those ``tensors`` that are copies, by name.
        same_shape: True if ``exp_avg`` of the slots is a matrix in memory, which is then in ``tensors`` from fetching
            to writing back.
        gaps: True if rows have elements that belong to no slot.
    """

    members: list[int]
    slots: list[BoundSlot]
    layouts: list[Layout]
    tensors: dict[str, Tensor]
    copies: dict[str, Copies] = field(default_factory=dict)
    same_shape: bool = False
    gaps: bool = False

    @property
    def height(self) -> int:
        """Number of rows, including padding."""
        return self.tensors["param"].shape[0]

    @cached_property
    def owners(self) -> Tensor:
        """The member that each row belongs to: int64 (height,)."""
        heights = torch.tensor([found.height for found in self.layouts], device="cpu")
        heights[-1] += self.height - heights.sum()
        return torch.repeat_interleave(torch.arange(len(heights), device="cpu"), heights)

    @cached_property
    def owner_places(self) -> Tensor:
        """The place in the call of each row's member: int64 (height,)."""
        return torch.tensor(self.members, device="cpu")[self.owners]

    @cached_property
    def lows(self) -> Tensor:
        """Lower half of the number of each row's first pair of noise, in the parameter: int32 (height, 1)."""
        lows = [_lows(found, slot.start, slot.row_pitch) for slot, found in zip(self.slots, self.layouts, strict=True)]
        fill = self.height - sum(found.height for found in self.layouts)
        return lows[0] if len(lows) == 1 and not fill else torch.cat((*lows, lows[-1][-1:].expand(fill, 1)))

    @property
    def high(self) -> int:
        """Upper half of those numbers, which all members share."""
        return self.slots[0].start >> 33

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.layouts[0].width

    # Copies in inference mode skip autograd's bookkeeping; the versions of tensors count on all the same. Entering it
    # takes as long as a copy, so where there is none it is not.

    def fetch(self) -> None:
        """Fill scratch from the slots."""
        if not self.copies:
            return
        if self.same_shape:
            shape, first = (self.height, self.width), self.slots[0].state["exp_avg"]
            self.tensors["exp_avg"] = first.as_strided(shape, (self.width, 1))
        with torch.inference_mode():
            for name, copies in self.copies.items():
                if self.gaps:
                    self.tensors[name].zero_()
                copies.fetch(_theirs(self.slots, name))

    def write_back(self) -> None:
        """Copy the results from scratch to the slots."""
        if not self.copies:
            return
        with torch.inference_mode():
            for name, copies in self.copies.items():
                if name != "grad" and not (name == "param" and "stored" in self.copies):
                    copies.write_back(_theirs(self.slots, name))
        if self.same_shape:
            del self.tensors["exp_avg"]  # state that is let go of must die


def ready(keys: Sequence[str], member: int, slot: BoundSlot, found: Layout) -> Matrix:
    """Return the matrix of a slot, with state of these names, that needs no copy."""
    height, state = found.height, slot.state
    tensors = {"param": slot.param.view(height, -1), "grad": slot.grad.view(height, -1)}
    for key in keys:
        tensors[key] = state[key].view(height, -1)
    return Matrix([member], [slot], [found], tensors)


def gathered(
    plan: Plan, members: Sequence[int], slots: Sequence[BoundSlot], layouts: Sequence[Layout], scratch: Scratch
) -> Matrix:
    """Return a matrix in scratch for these slots, of layouts of one width; :meth:`Matrix.fetch` fills it."""
    width = layouts[0].width
    height = max(sum(found.height for found in layouts), 2)  # torch makes one row a case of its own
    needed = _needed(plan, width)
    same_shape = "exp_avg" in needed and are_rows(_theirs(slots, "exp_avg"), (height, width))
    if same_shape:
        del needed["exp_avg"]
    tensors = {name: scratch.take(name, dtype, height, row) for name, (dtype, row) in needed.items()}
    copies = {name: Copies(tensor, _theirs(slots, name), layouts, scratch) for name, tensor in tensors.items()}
    gaps = height * width != sum(slot.param.numel() for slot in slots)
    return Matrix(list(members), list(slots), list(layouts), tensors, copies, same_shape, gaps)


def _needed(plan: Plan, width: int) -> dict[str, tuple[torch.dtype, int]]:
    """Return dtypes and row sizes of scratch."""
    simple = plan.param_rounding == "nearest" and plan.param_dtype == plan.grad_dtype
    dtype = plan.param_dtype if simple else torch.float32
    needed = {"param": (dtype, width), "grad": (dtype, width)}
    sizes = {
        "exp_avg": width,
        "exp_avg_codes": width * plan.format.bits // 8,
        "exp_avg_scale": 1,
        "param_residual": width,
    }
    for name, spec in plan.state_spec((1, width)).items():
        if name in state_keys(plan):
            needed[name] = (spec.dtype, sizes[name])
    if plan.param_rounding != "nearest":
        needed["stored"] = (plan.param_dtype, width)
    return needed


@lru_cache(maxsize=64)
def _lows(found: Layout, start: int, row_pitch: int) -> Tensor:
    lows = torch.arange(found.height // found.rows, dtype=torch.int32, device="cpu") * (found.width // 2)
    rows = torch.arange(found.rows, dtype=torch.int32, device="cpu") * word(row_pitch // 2)
    low: Tensor = rows[:, None] + lows + word(start // 2)
    return low.view(-1, 1)


def _theirs(slots: Sequence[BoundSlot], name: str) -> list[Any]:
    """Return the tensors of the slots that are copied to the scratch of this name."""
    if name == "grad":
        return [slot.grad for slot in slots]
    if name in ("param", "stored"):
        return [slot.param for slot in slots]
    return [slot.state[name] for slot in slots]
