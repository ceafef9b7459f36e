"""Placement of state: two classes with one interface, beside the parameter or in pages.

``Resident`` keeps state beside its parameter. ``Paged`` keeps it on the host (in memory-mapped files under
``page_dir``), and on the device what ``page_budget`` allows. If the parameters are on the CPU nothing is moved. Both
are plain values: a copied or pickled optimizer keeps its configuration.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lionbits.state import counts, entries
from lionbits_reference.spec import TensorSpec, checks

from . import colocated, host_memory
from .streams import CopyStreams, copy_streams

#: Bytes of a page: large enough that a copy of one runs at the speed of the bus.
PAGE_SIZE = 16 << 20


@dataclass(frozen=True)
class Resident:
    """State on its parameter's device."""

    #: True if the host updates the parameters of a device.
    offloads = False

    def moves(self, device: torch.device) -> bool:
        """False: nothing of parameters on ``device`` is moved for an update."""
        del device
        return False

    def computes_on(self, device: torch.device) -> torch.device:
        """Return ``device``: parameters are updated where they are."""
        return device

    def reaches(self, device: torch.device) -> list[torch.device]:
        """Return the devices that state of parameters on ``device`` may be on: ``device`` alone."""
        return [device]


@dataclass(frozen=True)
class Paged:
    """State on the host. The device holds what there is room for, unless the update runs on the host too.

    Attributes:
        page_budget: bytes of state that may be on a device at a time, at least two pages; None: what it can spare.
        page_dir: a folder for memory-mapped files, or None for memory.
        page_size: bytes of a page.
        paged_compute: ``"device"``: state is copied to its parameter; ``"host"``: parameter and gradient to the state.
        streams: makes the copy streams of a device, for tests. With it even state of parameters on the CPU is
            prefetched and written back.
    """

    page_budget: int | None = None
    page_dir: str | Path | None = None
    page_size: int = PAGE_SIZE
    paged_compute: str = "device"
    streams: Callable[[torch.device], CopyStreams] | None = None

    def __post_init__(self) -> None:
        if self.page_budget is not None:
            checks.integer("page_budget", self.page_budget, 0, hint="It counts bytes; None sets no limit.")
        if not isinstance(self.page_dir, (str, Path, type(None))):
            raise checks.mistyped("page_dir", self.page_dir, "must be a path, or None")
        if self.page_dir is not None and not Path(self.page_dir).is_dir():
            raise checks.refusal(ValueError, "page_dir", self.page_dir, "must be an existing folder, or None")
        checks.integer("page_size", self.page_size, 1, hint="It counts bytes; None means 16 MiB.")
        checks.choice("paged_compute", self.paged_compute, ("device", "host"))
        if self.offloads and self.page_budget is not None:
            rule = "contradicts paged_compute='host', with which no state is ever on the device"
            raise checks.refusal(ValueError, "page_budget", self.page_budget, rule, "Leave it out.")

    @property
    def offloads(self) -> bool:
        """True if the host updates the parameters of a device."""
        return self.paged_compute == "host"

    def moves(self, device: torch.device) -> bool:
        """True if an update of parameters on ``device`` needs copies between host and device."""
        return device.type != "cpu" or self.streams is not None

    def computes_on(self, device: torch.device) -> torch.device:
        """Return the device that updates parameters on ``device``."""
        return torch.device("cpu") if self.offloads else device

    def reaches(self, device: torch.device) -> list[torch.device]:
        """Return the devices that state of parameters on ``device`` may be on; first the one that updates them."""
        return list(dict.fromkeys((self.computes_on(device), torch.device("cpu"))))

    def streams_of(self, device: torch.device) -> CopyStreams:
        """Return the copy streams of ``device``."""
        return (self.streams or copy_streams)(device)


Pager = Resident | Paged


def paging_config(is_paged: object, **settings: Any) -> Pager:
    """Return the configuration that optimizer arguments ask for.

    Args:
        is_paged: whether state is.
        settings: those of :class:`Paged`, by their names there; None: not given.

    Raises:
        TypeError, ValueError: naming the argument; also for settings without ``is_paged=True``.
    """
    checks.flag("is_paged", is_paged)
    given = {name: value for name, value in settings.items() if value is not None}
    if is_paged:
        return Paged(**given)
    for name, value in given.items():
        raise checks.refusal(ValueError, name, value, "is for paged state", "Pass is_paged=True with it.")
    return Resident()


def adopt(pager: Pager, held: Sequence[tuple[torch.device, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return copies of the states of parameters on these devices, each tensor where it is kept.

    Norms, and other small tensors unlike the parameter, are kept where it is updated. Paged state goes to the host
    even if the device has room: there it could be beside the state that it replaces.
    """
    copies: list[dict[str, Any]] = [dict(state) for _, state in held]
    large = [_large(state) for state in copies]
    for device in dict.fromkeys(device for device, _ in held):
        places = [j for j, (d, _) in enumerate(held) if d == device]
        specs = [{key: TensorSpec(tuple(t.shape), t.dtype) for key, t in large[j].items()} for j in places]
        if isinstance(pager, Paged):
            made = host_memory.allocate(specs, pager.page_size, pager.page_dir, pinned=device.type == "cuda")
        else:
            made = colocated.zeros(specs, device)
        on_device = pager.computes_on(device)
        for j, tensors in zip(places, made, strict=True):
            for key, value in copies[j].items():
                if key in tensors:
                    copies[j][key] = tensors[key].copy_(value.detach())
                elif key == counts.KEY and isinstance(value, Tensor):
                    copies[j][key] = value.detach().to("cpu", copy=True)
                elif key not in entries.OWN:
                    copies[j][key] = _carried(value, device)
                elif isinstance(value, Tensor):
                    contiguous = torch.contiguous_format  # kernels go through state in its logical order
                    copies[j][key] = value.detach().to(on_device, copy=True, memory_format=contiguous)
    return copies


def _carried(value: Any, device: torch.device) -> Any:
    """Return a copy of another library's entry in a state, its tensors on ``device`` and otherwise unchanged."""
    if isinstance(value, Tensor):
        there = value.detach()
        return there.clone() if there.is_meta or there.device == device else there.to(device)
    if type(value) in (list, tuple):
        return type(value)(_carried(item, device) for item in value)
    if type(value) is dict:
        return {key: _carried(item, device) for key, item in value.items()}
    return copy.deepcopy(value)


def _large(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and key in MOVING}


#: State that is as large as its parameter, or a part of that.
MOVING = ("exp_avg", "exp_avg_codes", "exp_avg_scale", "param_residual")
