"""Steps whose state does not fit on the device, beside the bandwidth of the bus, a forecast, and resident state.

On the CPU, where nothing has to be copied, copies are forced: that is for dry runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import lionbits
from lionbits import select
from lionbits.options import Bits
from lionbits.paging.config import PAGE_SIZE
from lionbits.paging.streams import copy_streams
from lionbits_reference.spec import Format

from . import traffic, transfers
from .candidates import DTYPES, Candidate, lions
from .forecast import Machine, schedule
from .measure import Effort, Round
from .peers import peers
from .results import Row
from .rule import COMMON
from .transfers import Crossing, TransferStats
from .workloads import Family

#: Dtype of parameters and gradients, which are on the device: as large models are trained.
DTYPE = "bf16"

#: The peer that pages 8-bit state, by managed memory.
MANAGED = ("bitsandbytes", "PagedLion8bit")


@dataclass(frozen=True, kw_only=True)
class Paging:
    """Settings of the paging measurements.

    Attributes:
        family: the list of parameters, at falling sizes.
        effort: of a turn.
        host_family: the list that the host updates, which is slower.
        host_effort: of a turn there.
        host_backends: the first of these that serves updates on the host.
        bus_bytes: that cross the bus each way, in each measurement.
        page_size: of most steps.
        bus_sizes: of pages that cross the bus.
        page_sizes: of steps in the middle of the budgets.
        bits: of state; what comes first is measured where time is short.
        factors: how many times the budget state is.
        managed: whether peers may page by managed memory.
    """

    family: Family
    effort: Effort
    host_family: Family
    host_effort: Effort
    host_backends: Sequence[str] = (*select.PREFERENCE["cpu"], select.REFERENCE)
    bus_bytes: int = 1 << 28
    page_size: int = PAGE_SIZE
    bus_sizes: Sequence[int] = (1 << 20, 4 << 20, 16 << 20, 64 << 20)
    page_sizes: Sequence[int] = (4 << 20, 16 << 20, 64 << 20)
    bits: Sequence[Bits] = (8, 32, 4)
    factors: Sequence[int] = (2, 4, 10)
    managed: bool = False

    @property
    def middle(self) -> int:
        """The factor at which page sizes are gone through."""
        return self.factors[len(self.factors) // 2]


def rounds(paging: Paging, backends: Sequence[str], device: torch.device) -> Iterator[tuple[Round, Effort]]:
    """Yield rounds in order of importance: the first width of state, the update on the host, other widths."""
    if not backends:
        return
    first, *others = paging.bits
    sizes = [size for size in paging.page_sizes if size != paging.page_size]
    by_size = [streaming(backend, first, paging.middle, size) for size in sizes for backend in backends]
    everyone = [*_budgets(paging, backends, first), *by_size, *_by_managed_memory(paging, device)]
    yield Round(paging.family, everyone), paging.effort
    beside = streaming(backends[0], 32, paging.middle, paging.page_size)
    host = [*lions(backends[:1], DTYPE, ["32 bits"]), beside, on_host(paging)]
    yield Round(paging.host_family, host), paging.host_effort
    for bits in others:
        yield Round(paging.family, _budgets(paging, backends, bits)), paging.effort


def _budgets(paging: Paging, backends: Sequence[str], bits: Bits) -> list[Candidate]:
    """Return resident state, then every budget: backends next to each other."""
    paged = [streaming(backend, bits, factor, paging.page_size) for factor in paging.factors for backend in backends]
    return [*lions(backends, DTYPE, [f"{bits} bits"]), *paged]


def _by_managed_memory(paging: Paging, device: torch.device) -> list[Candidate]:
    library, variant = MANAGED
    return [peer for peer in peers(DTYPE, device, [library]) if paging.managed and peer.variant == variant]


def streaming(backend: str, bits: Bits, factor: int, page_size: int) -> Candidate:
    """Return a candidate whose state is ``factor`` times as large as its budget on the device."""

    def build(parameters: list[Tensor]) -> Optimizer:
        state = traffic.planned_state_bytes(lionbits.Lion(parameters, optim_bits=bits))
        return _paged(parameters, optim_bits=bits, backend=backend, page_budget=state // factor, page_size=page_size)

    variant = f"{bits} bits, {factor}x the budget, pages of {transfers.memory(page_size)}"
    return Candidate(backend, variant, DTYPE, Format.of(bits).bytes_per_element, build, True)


def on_host(paging: Paging) -> Candidate:
    """Return a candidate with 32-bit state that is never copied; parameters and gradients are."""
    cpu = torch.device("cpu")
    backend = next(name for name in paging.host_backends if not select.diagnose(name, cpu))

    def build(parameters: list[Tensor]) -> Optimizer:
        return _paged(parameters, paged_compute="host", backend=backend, page_size=paging.page_size)

    return Candidate(backend, "32 bits, updated on the host", DTYPE, 0.0, build, True)


def complete(rows: Iterable[Row], crossings: Sequence[Crossing]) -> None:
    """Add to the rows of each list what they are compared with: resident steps, the bus, a forecast."""
    rows = list(rows)
    resident = {(row.workload, row.remark, row.name, row.variant): row.step_seconds for row in rows if not row.moved}
    for row in rows:
        if row.moved is None:
            continue
        row.moved.bus = transfers.best(crossings, "both")
        if row.moved.budget is not None:  # else the host updates, and pages are something else
            bits = row.variant.split(",")[0]
            row.moved.resident_seconds = resident.get((row.workload, row.remark, row.name, bits))
            row.moved.forecast_seconds = forecast(row.moved)
        if row.peak_bytes is not None:
            row.moved.device_bytes = row.peak_bytes - 2 * row.elements * DTYPES[row.dtype].itemsize


def forecast(found: TransferStats) -> float | None:
    """Return seconds of a pass over pages of one size, if the two directions share the bus's bandwidth."""
    if found.bus is None or not found.resident_seconds or not found.pages:
        return None
    each = found.bus / 2
    machine = Machine(each, each, found.state_bytes / found.resident_seconds)
    buffers = -(-found.passing_bytes // found.page_size)
    return schedule([found.bytes_in // found.pages] * found.pages, machine, buffers)[-1].end


def _paged(parameters: list[Tensor], **settings: Any) -> Optimizer:
    optimizer = lionbits.Lion(parameters, **COMMON, is_paged=True, **settings)
    if parameters[0].device.type == "cpu":
        pager: Any = optimizer._pager
        optimizer._pager = replace(pager, streams=copy_streams)
    return optimizer
