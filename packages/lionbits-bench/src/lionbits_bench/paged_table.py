"""The section about paging: the bus, then steps beside it, list by list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lionbits.paging.config import PAGE_SIZE

from .results import Results, Row
from .tables import NOTHING, markdown, milliseconds, number, percent
from .transfers import ENOUGH, WAYS, Crossing, best, enough, memory

BUS = """\
Pages copied between pinned memory and the device on the copy streams of paging, GB/s: medians; **both**: both ways at
once, their bytes together; **of the best**: of that."""

STEPS = """\
Parameters and gradients are on the device. **ms**: median, from an idle device to an idle device; **resident**: of a
step of the same list with all state on the device, likewise; **forecast**: what `lionbits_bench.forecast` says of its
pages alone, for half of the bus each way and the resident update. **in**, **out**: MB of a step, as the optimizer
counted them; **GB/s**: both ways together; **of the bus**: of the best both ways at once. **device**: the
most MB in tensors during a step beyond parameters and gradients; **budget**: MB of state that may be there."""

COLUMNS = ("who", "variant", "ms", "±", "resident ms", "forecast ms", "in MB", "out MB", "GB/s", "of the bus",
           "device MB", "budget MB", "")  # fmt: skip

LEFT_OUT = "bitsandbytes pages by managed memory, and was left out: `--managed` lets it in."
LET_IN = (
    "bitsandbytes pages by managed memory and has no budget: here nothing keeps its state from staying on the device."
)


def lines(results: Results) -> Iterator[str]:
    """Yield the lines of the section."""
    if not results.bus and not results.paging:
        return
    if results.bus:
        yield from (BUS, "", *_bus(results.bus), "", outcome(results.bus), "")
    yield from (STEPS, "", LET_IN if results.managed else LEFT_OUT, "")
    for title in dict.fromkeys(_list(row) for row in results.paging):
        yield from _steps(title, [row for row in results.paging if _list(row) == title])


def outcome(crossings: Sequence[Crossing]) -> str:
    """Return a sentence about the smallest page that is large enough for the bus."""
    size = enough(crossings)
    if size is None:
        return "Which page is large enough was not measured."
    return (
        f"The smallest page that reaches {100 * ENOUGH:.0f} % of the best both ways at once: {memory(size)}. "
        f"The default is {memory(PAGE_SIZE)}."
    )


def terminal_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield lines for the terminal."""
    for row in rows:
        if row.moved is not None:
            yield f"paging: {row.title}: {milliseconds(row.step_seconds)} ms, {percent(row.of_bus)} of the bus"


def _bus(crossings: Sequence[Crossing]) -> Iterator[str]:
    found = {(c.page_size, c.way): c.bandwidth for c in crossings}
    top = best(crossings, "both")
    rows = []
    for size in dict.fromkeys(c.page_size for c in crossings):
        both = found.get((size, "both"))
        share = percent(None if both is None or top is None else both / top)
        rows.append((memory(size), *(number(found.get((size, way)), 1e-9, 1) for way in WAYS), share))
    yield from markdown(("page", *WAYS, "of the best"), rows)


def _list(row: Row) -> str:
    return f"{row.workload}, {row.dtype}" + (f": {row.remark}" if row.remark else "")


def _steps(title: str, rows: Sequence[Row]) -> Iterator[str]:
    first = rows[0]
    yield from (f"### {title}", "", f"{first.tensors:,} tensors, {first.elements:,} elements.", "")
    yield from markdown(COLUMNS, [_cells(row) for row in rows])
    yield ""


def _cells(row: Row) -> tuple[str, ...]:
    moved = row.moved
    who = row.name, row.variant, milliseconds(row.step_seconds), milliseconds(row.spread)
    if moved is None:
        return (*who, *(NOTHING,) * 8, row.problem)
    return (
        *who,
        milliseconds(moved.resident_seconds),
        milliseconds(moved.forecast_seconds),
        number(moved.bytes_in, 1e-6, 1),
        number(moved.bytes_out, 1e-6, 1),
        number(row.crossing_bandwidth, 1e-9, 1),
        percent(row.of_bus),
        number(moved.device_bytes, 1e-6, 1),
        number(moved.budget, 1e-6, 1),
        row.problem,
    )
