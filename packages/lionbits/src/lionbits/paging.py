"""Where state lives and when it moves. Kernels only ever see tensors that they can reach.

Two arrangements with one interface. ``Resident`` keeps state beside its parameter. ``Paged`` keeps it in host
memory (in memory-mapped files under ``page_dir``) and brings it to the device one tensor at a time; where the
parameters are on the CPU themselves nothing has to move. Both are plain values: an optimizer that is copied
or pickled takes its arrangement along.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lionbits_reference.spec import Slot, TensorSpec, checks

_HOST = torch.device("cpu")


@dataclass(frozen=True)
class Resident:
    """State lives on its parameter's device."""

    def allocate(self, spec: TensorSpec, device: torch.device) -> Tensor:
        """A zeroed state tensor for a parameter on ``device``."""
        return torch.zeros(spec.shape, dtype=spec.dtype, device=device)

    def adopt(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A copy of ``tensor`` where this arrangement keeps the state of a parameter on ``device``."""
        return tensor.detach().to(device, copy=True)

    def parts(self, slots: Sequence[Slot]) -> Iterator[tuple[Sequence[Slot], slice]]:
        """Runs of slots whose state a kernel can reach, and their place in ``slots``: here all at once."""
        yield slots, slice(0, len(slots))


@dataclass(frozen=True)
class Paged:
    """State lives in host memory, or under ``page_dir`` on disk, and visits the device tensor by tensor.

    Attributes:
        page_budget: bytes of state that may be on the device at a time; None sets no limit. This arrangement
            holds the least it can, the state of one tensor, whatever the budget.
        page_dir: a folder for memory-mapped files, or None for memory.
    """

    page_budget: int | None = None
    page_dir: str | Path | None = None

    def __post_init__(self) -> None:
        if self.page_budget is not None:
            checks.integer("page_budget", self.page_budget, 0, hint="It counts bytes; None sets no limit.")
        if not isinstance(self.page_dir, (str, Path, type(None))):
            raise checks.refusal(TypeError, "page_dir", self.page_dir, "must be a path, or None")
        if self.page_dir is not None and not Path(self.page_dir).is_dir():
            raise checks.refusal(ValueError, "page_dir", self.page_dir, "must be an existing folder, or None")

    def allocate(self, spec: TensorSpec, device: torch.device) -> Tensor:
        """A zeroed state tensor on the host."""
        if self.page_dir is None or 0 in spec.shape:
            return torch.zeros(spec.shape, dtype=spec.dtype, device=_HOST, pin_memory=device.type == "cuda")
        return _mapped(spec, self.page_dir)

    def adopt(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A copy of ``tensor`` on the host."""
        page = self.allocate(TensorSpec(tuple(tensor.shape), tensor.dtype), device)
        return page.copy_(tensor.detach())

    def parts(self, slots: Sequence[Slot]) -> Iterator[tuple[Sequence[Slot], slice]]:
        """One slot at a time: its state visits the slot's device while the caller holds it."""
        for j, slot in enumerate(slots):
            pages = {key: value for key, value in slot.state.items() if isinstance(value, Tensor)}
            near = {key: page.to(slot.param.device) for key, page in pages.items()}
            yield [replace(slot, state=near)], slice(j, j + 1)
            for key, page in pages.items():
                if near[key] is not page:
                    page.copy_(near[key])


Pager = Resident | Paged


def arrangement(is_paged: object, page_budget: int | None, page_dir: str | Path | None) -> Pager:
    """The arrangement that optimizer arguments ask for.

    Raises:
        TypeError, ValueError: naming the argument; also for page settings without ``is_paged=True``.
    """
    checks.flag("is_paged", is_paged)
    if is_paged:
        return Paged(page_budget, page_dir)
    for name, value in (("page_budget", page_budget), ("page_dir", page_dir)):
        if value is not None:
            raise checks.refusal(ValueError, name, value, "is for paged state", "Pass is_paged=True with it.")
    return Resident()


def adopted(pager: Pager, device: torch.device, state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the state of a parameter on ``device``, each tensor where it is kept; norms stay with the parameter."""

    def placed(key: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return (Resident() if key == "grad_norms" else pager).adopt(value, device)

    return {key: placed(key, value) for key, value in state.items()}


def _mapped(spec: TensorSpec, folder: str | Path) -> Tensor:
    """A zeroed tensor in a private file that has lost its name already, and so dies with the tensor."""
    size = torch.Size(spec.shape).numel()
    handle, name = tempfile.mkstemp(prefix="lionbits-", suffix=".page", dir=folder)
    try:
        os.truncate(handle, size * spec.dtype.itemsize)
        tensor = torch.from_file(name, shared=True, size=size, dtype=spec.dtype, device=_HOST)
    finally:
        os.close(handle)
        Path(name).unlink()
    return tensor.view(spec.shape)
