"""The chart of ``lionbits-bench quality``: every seed a point, beside the line of 32 bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lionbits_cli.charts import INK, PALETTE, drawing

from .quality_table import BASELINE, Row, difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Percent beyond which a difference is shown as a number alone: the near ones need the room.
NEAR = 5.0
ROW_HEIGHT = 0.36  # inches


def draw(rows: Sequence[Row], path: Path) -> None:
    """Losses on the left, on one scale; paired differences near zero, enlarged, on the right."""
    with drawing(path, 12.5, 1.8 + ROW_HEIGHT * len(rows)) as figure:
        losses, differences = figure.subplots(1, 2, sharey=True)
        _losses(losses, rows)
        _differences(differences, rows)
        losses.set_yticks(range(len(rows)), [row.variant for row in rows])
        losses.set_ylim(len(rows) - 0.4, -0.6)
        for axes in (losses, differences):
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
        seeds = max(len(row.losses) for row in rows)
        figure.suptitle(f"Held-out loss by state of the momentum, {seeds} seed{'s' * (seeds != 1)}", fontsize=14)


def _losses(axes: Axes, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        colour = _colour(row)
        axes.plot(row.losses, [place] * len(row.losses), "o", color=colour, markersize=5, alpha=0.45, mew=0)
        axes.plot(row.loss, place, "|", color=colour, markersize=15, mew=2.5)
        if row.variant == BASELINE:
            axes.axvline(row.loss, color=PALETTE[0], linewidth=1, zorder=0.5)
    axes.set_title("After the last step")
    axes.set_xlabel("held-out loss (nats per byte); bar: mean, point: seed")


def _differences(axes: Axes, rows: Sequence[Row]) -> None:
    axes.axvline(0, color=PALETTE[0], linewidth=1, zorder=0.5)
    for place, row in enumerate(rows):
        if row.percent is None:
            continue
        if abs(row.percent) <= NEAR:
            near = [percent for percent in row.percents if abs(percent) <= NEAR]
            axes.plot(near, [place] * len(near), "o", color=_colour(row), markersize=5, alpha=0.45, mew=0)
            axes.errorbar(row.percent, place, xerr=row.percent_error or 0, fmt="|", color=_colour(row), markersize=15,
                          mew=2.5, capsize=4)  # fmt: skip
        else:
            edge = -NEAR if row.percent < 0 else NEAR  # a NaN is at the bad end
            axes.plot(edge, place, ">" if edge > 0 else "<", color=_colour(row), markersize=7, clip_on=False)
        axes.annotate(difference(row), (1.03, place), xycoords=("axes fraction", "data"), va="center", color=INK)
    axes.set_xlim(-NEAR, NEAR)
    axes.set_title(f"Against {BASELINE} of the same seed")
    axes.set_xlabel("difference (%), lower is better; bracket: standard error")


def _colour(row: Row) -> str:
    """Return a colour by the treatment of the momentum, so that families are visible."""
    if row.variant == BASELINE:
        return PALETTE[0]
    if row.packed_share == 0:
        return PALETTE[-1]
    return PALETTE[1] if "nearest" in row.variant else PALETTE[2]
