"""All drawing: no window, no display, the same picture on every machine.

Colours are Okabe and Ito's, which stay distinct for every common kind of colour blindness; every series also has
a marker of its own for black-and-white printers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import human_bytes
from .experiment import COVERAGE_WANTED, EXPLOSION_STEP
from .results import twin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .experiment import Record
    from .results import Result

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#333333"
DPI = 150
STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def style(index: int) -> tuple[str, str]:
    """Return colour and marker of the series with this index."""
    return PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]


def look(results: Sequence[Result], index: int) -> dict[str, Any]:
    """Return colour and marker of a run; one that repeats an earlier run is a ring around it, which would be hidden."""
    colour, marker = style(index)
    if twin(results, index) is None:
        return {"color": colour, "marker": marker, "markersize": 7, "markeredgecolor": "white"}
    return {"color": colour, "marker": marker, "markersize": 12, "markerfacecolor": "none", "linestyle": "--"}


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure that no window system knows of; it is written whole or, after an error, not at all."""
    from matplotlib import style as styles
    from matplotlib.figure import Figure

    with styles.context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        figure.savefig(temporary, format="png")
    temporary.replace(path)


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of the last ``window`` values at each point (fewer at the start)."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def training_chart(results: Sequence[Result], path: Path) -> None:
    """Draw loss curves; for several runs also their differences from the first, and the size of their state."""
    single = len(results) == 1
    with drawing(path, *((10, 5.6) if single else (13, 7))) as figure:
        if single:
            loss_panel(figure.add_subplot(), results)
        else:
            grid = figure.add_gridspec(2, 2, width_ratios=(1.35, 1), height_ratios=(1.25, 1))
            loss_panel(figure.add_subplot(grid[:, 0]), results)
            difference_panel(figure.add_subplot(grid[0, 1]), results)
            state_panel(figure.add_subplot(grid[1, 1]), results)
        millions = results[0].parameters / 1e6
        figure.suptitle(
            f"Byte-level transformer, {millions:.2f} M parameters, on Python's standard library", fontsize=14
        )


def loss_panel(axes: Axes, results: Sequence[Result]) -> None:
    """Draw training loss thin and smoothed, with validation points, which are what one compares, on top."""
    window = max(1, len(results[0].history.train) // 40)
    for i, result in enumerate(results):
        colour, _ = style(i)
        train = smoothed(result.history.train, window)
        axes.plot(range(1, len(train) + 1), train, color=colour, linewidth=1, alpha=0.55)
        points = look(results, i) | {"linestyle": "none", "label": f"{result.variant}  {result.loss:.3f}"}
        axes.plot(*zip(*result.history.validation, strict=True), **points)
    _limit_losses(axes, results, window)
    config = results[0].config
    axes.set_title("Loss")
    axes.set_xlabel(f"training step (of {config['batch']} x {config['context']} bytes)")
    axes.set_ylabel("loss (nats per byte)")
    handles, labels = axes.get_legend_handles_labels()
    (thin,) = axes.plot([], [], color=INK, linewidth=1, alpha=0.55)
    axes.legend([*handles, thin], [*labels, f"training, mean of {window} steps"], title="validation, final")
    bits = axes.secondary_yaxis("right", functions=(_to_bits, _to_nats))
    bits.set_ylabel("bits per byte")


def _to_bits(nats: Any) -> Any:
    return nats / math.log(2)


def _to_nats(bits: Any) -> Any:
    return bits * math.log(2)


def _limit_losses(axes: Axes, results: Sequence[Result], window: int) -> None:
    """Leave out the steep first steps: from 5.5 nats on, they would squeeze the rest into a corner."""
    finite = [x for r in results for x in smoothed(r.history.train, window) if x < float("inf")]
    low = min([*finite, *(loss for r in results for _, loss in r.history.validation)])
    if finite and len(results[0].history.train) >= 100:
        axes.set_ylim(0.96 * low, 1.7 * low)


def difference_panel(axes: Axes, results: Sequence[Result]) -> None:
    """Draw validation loss of each run relative to the first, at the steps that both have evaluated."""
    reference = dict(results[0].history.validation)
    axes.axhline(0, color=PALETTE[0], linewidth=1.5)
    for i, result in enumerate(results[1:], start=1):
        common = [(step, loss) for step, loss in result.history.validation if step in reference]
        percent = [100 * (loss / reference[step] - 1) for step, loss in common]
        label = f"{result.variant}  {result.against(results[0]):+.2f} %"
        axes.plot([step for step, _ in common], percent, label=label, **look(results, i))
    axes.set_title(f"Validation loss against {results[0].variant}")
    axes.set_xlabel("training step")
    axes.set_ylabel("difference (%), lower is better")
    beneath = (0.5, -0.18)  # beside the curves there is no place that is free in every run
    axes.legend(title="at the end", loc="upper center", bbox_to_anchor=beneath, ncols=3, columnspacing=1.2)


def state_panel(axes: Axes, results: Sequence[Result]) -> None:
    """Draw the size of each run's state as a bar with its number."""
    for i, result in enumerate(results):
        value = result.bytes_per_parameter
        axes.barh(i, value, color=style(i)[0], height=0.65)
        text = f" {value:.3f} B  ({human_bytes(result.state_bytes)})"
        axes.text(value, i, text, va="center", ha="left", color=INK)
    axes.set_yticks(range(len(results)), [r.variant for r in results])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, max(r.bytes_per_parameter for r in results) * 1.5 or 1)
    axes.set_title("Optimizer state")
    axes.set_xlabel("bytes per parameter")


def report_chart(record: Record, path: Path) -> None:
    """Draw QLion's three charts side by side, with the explosion marked where it happened."""
    with drawing(path, 15, 5) as figure:
        loss, coverage, norms = figure.subplots(1, 3)
        loss.plot(range(1, len(record.losses) + 1), record.losses, color=PALETTE[0], linewidth=2)
        loss.set_title("Training loss")
        loss.set_ylabel("cross entropy (nats)")
        loss.set_ylim(bottom=0)
        _coverage_panel(coverage, record)
        _norms_panel(norms, record)
        for axes in (loss, norms):
            axes.axvline(EXPLOSION_STEP, color=INK, linestyle=":", linewidth=1.2, zorder=0.5)
        for axes in (loss, coverage, norms):
            axes.set_xlabel("training step")
        figure.suptitle(
            f"QLion, detailed test: three groups, 4-bit state, gradients clipped to {record.clip}",
            fontsize=14,
        )


def _norms_panel(axes: Axes, record: Record) -> None:
    """Draw both norms on one logarithmic scale: only one of them shows the explosion."""
    steps = range(1, len(record.losses) + 1)
    axes.plot(steps, record.gradient_norms, color=PALETTE[1], label="gradient, before clipping")
    axes.plot(steps, record.update_norms, color=PALETTE[2], label="update: change of the parameters")
    axes.set_yscale("log")
    axes.set_title("Gradient and update norm")
    axes.set_ylabel("Euclidean norm over all parameters")
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
    axes.annotate(
        f"injected explosion (step {EXPLOSION_STEP})",
        (EXPLOSION_STEP, max(record.gradient_norms)),
        (14, -4),
        textcoords="offset points",
        va="top",
        color=INK,
    )


def _coverage_panel(axes: Axes, record: Record) -> None:
    """Draw coverage over time. It is flat if all is well, so the names of tensors are below it."""
    percent = [100 * part for part in record.coverage]
    steps = range(1, len(percent) + 1)
    axes.plot(steps, percent, color=PALETTE[0], linewidth=2)
    axes.fill_between(steps, percent, color=PALETTE[0], alpha=0.12, linewidth=0)
    axes.axhline(100 * COVERAGE_WANTED, color=INK, linestyle="--", linewidth=1)
    axes.text(
        len(percent),
        100 * COVERAGE_WANTED + 1.5,
        f"at least {100 * COVERAGE_WANTED:.0f} % wanted",
        ha="right",
        color=INK,
    )
    axes.set_ylim(0, 105)
    axes.set_title(f"Quantisation coverage: {percent[-1]:.1f} %")
    axes.set_ylabel("elements with 4-bit state (%)")
    lines = [f"{name:<9}{size:>7,}  {4 if packed else 32:>2} bits" for name, (size, packed) in record.elements.items()]
    axes.text(0.04, 0.06, "\n".join(lines), transform=axes.transAxes, family="monospace", color=INK, va="bottom")
