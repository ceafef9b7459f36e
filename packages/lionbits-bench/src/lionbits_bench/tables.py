"""Rows as cells: the columns of every table of measurements, whatever prints it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from .peers import EAGER
from .results import Row

NOTHING = "-"

COLUMNS = """\
A row is one optimizer on one list of parameters. **ms**: median over all rounds; on a GPU by the device's own events,
caches cold and the host ahead of the device, as after a backward pass; on the CPU by the wall clock, caches as the step
before left them. **±**: between the quartiles of all samples. **GB/s**: the bytes that a step has to move at least
(parameters read and written, gradients read, state and scales read and written; momentum and gradient once more where
a number of the whole tensor is needed first), over that time. **of a copy**: against copying between two buffers of
the device, bytes read and written counted, measured before, between and after: the median. **against eager**: how
often this step fits into one of Lion written down in PyTorch. **begin**: seconds of the first steps, which make the
state and compile. **launches**: kernels of a step; **transfers**: copies and fills; **waits**: how often the host waits
for the device. **host**: wall time of `step()` itself, begun on an idle device. **peak**: most memory in tensors;
**beyond**: what of it is neither parameter, gradient nor state; on the CPU, by how much the process grows during a
step. **computes**: what the check of its rule found. Columns that nobody fills are left out."""


class Group(NamedTuple):
    """Rows of one list of parameters and one dtype."""

    rows: list[Row]

    @property
    def title(self) -> str:
        """Name of the list, its dtype, and a remark if it was shortened."""
        first = self.rows[0]
        return f"{first.workload}, {first.dtype}" + (f": {first.remark}" if first.remark else "")

    @property
    def caption(self) -> str:
        """Size of the list, and the bandwidth of a copy."""
        first = self.rows[0]
        copy = number(first.copy_bandwidth, 1e-9, 1)
        return f"{first.tensors:,} tensors, {first.elements:,} elements; a copy ran at {copy} GB/s."

    @property
    def eager_seconds(self) -> float | None:
        """Seconds of a step of the eager Lion, if it is among the rows."""
        return next((row.step_seconds for row in self.rows if (row.name, row.variant) == ("torch", EAGER)), None)


class Column(NamedTuple):
    """A heading, and a function that makes its cell of a row."""

    heading: str
    cell: Callable[[Row, Group], str]


def _times_eager(row: Row, group: Group) -> str:
    eager, own = group.eager_seconds, row.step_seconds
    return NOTHING if eager is None or own is None else f"{eager / own:.2f}x"


ALWAYS = ("who", "variant", "ms", "GB/s", "of a copy")

ALL = (
    Column("who", lambda row, _: row.name),
    Column("variant", lambda row, _: row.variant),
    Column("ms", lambda row, _: milliseconds(row.step_seconds)),
    Column("±", lambda row, _: milliseconds(row.spread)),
    Column("GB/s", lambda row, _: number(row.bandwidth, 1e-9, 2)),
    Column("of a copy", lambda row, _: percent(row.of_copy)),
    Column("against eager", _times_eager),
    Column("begin s", lambda row, _: number(row.start_seconds, 1, 1)),
    Column("launches", lambda row, _: count(row.kernels)),
    Column("transfers", lambda row, _: count(row.transfers)),
    Column("waits", lambda row, _: count(row.waits)),
    Column("host µs", lambda row, _: number(row.host_step_seconds, 1e6, 0)),
    Column("peak GB", lambda row, _: number(row.peak_bytes, 1e-9, 2)),
    Column("beyond MB", lambda row, _: number(row.temporary_bytes, 1e-6, 1)),
    Column("computes", lambda row, _: re.split("[,:]", row.computes)[0]),
    Column("", lambda row, _: row.problem),
)


def groups(rows: Sequence[Row]) -> Iterator[Group]:
    """Yield groups of comparable rows, in the order in which they were measured."""
    for _, members in groupby(rows, lambda row: (row.workload, row.remark, row.dtype)):
        yield Group(list(members))


def cells(group: Group) -> Iterator[tuple[str, ...]]:
    """Yield headings, then a line per row; columns that no row fills are left out."""
    shown = [c for c in ALL if c.heading in ALWAYS or any(c.cell(r, group) not in (NOTHING, "") for r in group.rows)]
    yield tuple(column.heading for column in shown)
    for row in group.rows:
        yield tuple(column.cell(row, group) for column in shown)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    for line in (columns, ["---"] * len(columns), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"


def number(value: float | None, factor: float, digits: int) -> str:
    """Return a value in the unit of its column."""
    return NOTHING if value is None else f"{value * factor:,.{digits}f}"


def milliseconds(seconds: float | None) -> str:
    """Return milliseconds: with three digits below 0.1 s, else with one."""
    return number(seconds, 1e3, 3 if seconds is None or seconds < 0.1 else 1)


def percent(value: float | None) -> str:
    """Return a fraction in percent."""
    return number(value, 100, 0) + ("" if value is None else " %")


def count(value: int | None) -> str:
    """Return a whole number."""
    return NOTHING if value is None else f"{value:,}"
