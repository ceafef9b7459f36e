"""Charts of measurements: bandwidth on every list of parameters, and time against the size of a tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from lionbits_cli.charts import INK, drawing, style

from . import tables
from .peers import EAGER
from .results import Results, Row, quartiles
from .tables import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, BASELINE, OTHERS = style(0)[0], style(1)[0], "#999999"
BAR_HEIGHT = 0.3  # inches
#: Findings that no chart need mention.
GOOD = ("right", "not checked")

#: Times the longest bar, beyond which the line of a copy is shown as a number alone.
FAR = 4

DASHES = ("-", "--", ":", "-.")


def draw(results: Results, out: Path) -> Iterator[Path]:
    """Yield the paths of all charts for which there are rows."""
    for group in tables.groups(results.speed):
        measured = [row for row in group.rows if row.bandwidth is not None]
        if measured:
            path = out / f"speed-{_slug(group.rows[0].workload)}-{group.rows[0].dtype}.png"
            _bars(group, measured, path)
            yield path
    for dtype, rows in groupby(results.sizes, lambda row: row.dtype):
        path = out / f"sizes-{dtype}.png"
        _lines([row for row in rows if row.step_seconds is not None], dtype, path)
        yield path


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _bars(group: Group, rows: Sequence[Row], path: Path) -> None:
    """Draw useful bytes per second, the longest bar on top, beside the line of a copy."""
    ordered = sorted(rows, key=lambda row: row.bandwidth or 0.0)
    with drawing(path, 10, 1.7 + BAR_HEIGHT * len(ordered)) as figure:
        axes = figure.add_subplot()
        longest = max(_bar(axes, place, row) for place, row in enumerate(ordered))
        _copy(axes, (group.rows[0].copy_bandwidth or 0.0) / 1e9, longest, len(ordered))
        axes.set_yticks(range(len(ordered)), [_label(row) for row in ordered])
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("GB/s: bytes that a step has to move, over its time; the line is from quartile to quartile")
        figure.suptitle(f"{group.title}\n{group.rows[0].elements:,} elements", fontsize=13)


def _copy(axes: Axes, copy: float, best: float, top: float) -> None:
    """Draw the line of a copy; if it is far beyond the bars, write its number instead."""
    near = copy < FAR * best
    end = 1.3 * (max(copy, best) if near else best)
    axes.set_xlim(0, end)
    if near:
        axes.axvline(copy, color=INK, linestyle="--", linewidth=1.2)
        axes.text(copy, top - 0.4, "a copy", ha="center", va="bottom", color=INK)
    else:
        axes.text(end, top - 0.4, f"a copy: {copy:.1f} GB/s", ha="right", va="bottom", color=INK)


def _label(row: Row) -> str:
    return f"lionbits {row.name}: {row.variant}" if row.ours else f"{row.name}: {row.variant}"


def _bar(axes: Axes, place: int, row: Row) -> float:
    """Draw a bar with its whisker and time; return the end of the whisker, for the limits of the axes."""
    step, floor = row.step_seconds, row.floor_bytes
    assert step is not None
    assert floor is not None
    low, middle, high = (
        floor / seconds / 1e9 for seconds in (quartiles(row.seconds)[1], step, quartiles(row.seconds)[0])
    )
    wrong = "" if not row.computes or row.computes.startswith(GOOD) else row.computes.partition(":")[0]
    axes.barh(
        place,
        middle,
        xerr=[[max(middle - low, 0.0)], [max(high - middle, 0.0)]],
        color=OURS if row.ours else BASELINE if row.variant == EAGER else OTHERS,
        ecolor=INK,
        height=0.7,
        hatch="///" if wrong else "",
        edgecolor="white",
    )
    text = f"  {tables.milliseconds(step)} ms" + (f", {wrong}" if wrong else "")
    axes.text(high, place, text, va="center", color=INK, fontsize=9)
    return high


def _lines(rows: Sequence[Row], dtype: str, path: Path) -> None:
    """Draw time against size, both axes logarithmic: flat is the cost of a call, a slope of one is bandwidth."""
    with drawing(path, 10, 6.5) as figure:
        axes = figure.add_subplot()
        series: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            series.setdefault((row.name, row.variant), []).append(row)
        for i, points in enumerate(series.values()):
            colour, marker = style(i)
            axes.plot(
                [row.elements for row in points],
                [1e6 * (row.step_seconds or 0.0) for row in points],
                color=colour,
                marker=marker,
                linestyle=DASHES[i // 7 % len(DASHES)],
                label=_label(points[0]),
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("elements of one tensor")
        axes.set_ylabel("microseconds of a step, median")
        axes.legend(fontsize=9)
        figure.suptitle(f"A step against the size of the tensor, {dtype}", fontsize=13)
