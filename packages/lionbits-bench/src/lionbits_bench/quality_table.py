"""Tables of quality: means over seeds, their spread, differences from 32 bits; in markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from lionbits_cli.console import Table

BASELINE = "32 bits"
NOTHING = "-"
COLUMNS = ("variant", "loss", "deviation", f"against {BASELINE}", "bytes/param", "ms/step", "of it Lion", "seeds")

EXPLANATION = """\
**loss**: nats per byte on held-out files after the last step, the mean over seeds. **deviation**: its sample standard
deviation over seeds. **against 32 bits**: the mean over seeds of the difference from the 32-bit run of the same seed
(same weights, same data), in percent of the mean 32-bit loss, ± the standard error of that mean. **bytes/param**:
everything in the optimizer's state, scales and 32-bit state of small tensors included. **ms/step**: forward, backward
and step, the median over seeds; **of it Lion**: `optimizer.step()`."""


@dataclass(frozen=True)
class Outcome:
    """A finished run: one variant, one seed. ``validation`` has pairs of step and loss."""

    variant: str
    settings: dict[str, Any]
    seed: int
    validation: list[tuple[int, float]]
    parameters: int
    packed_parameters: int
    state_bytes: int
    skipped_elements: int
    seconds: float
    optimizer_seconds: float

    @property
    def loss(self) -> float:
        """Loss after the last step."""
        return self.validation[-1][1]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.validation[-1][0]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Outcome:
        """Read the output of :meth:`as_json`."""
        pairs = [(int(step), float(loss)) for step, loss in entry["validation"]]
        return cls(**{**entry, "validation": pairs})

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Row:
    """A variant. ``differences`` are its losses less those of 32 bits, for each seed that has both."""

    variant: str
    losses: list[float]
    differences: list[float]
    baseline: float | None
    bytes_per_parameter: float
    packed_share: float
    skipped_elements: int
    step_seconds: float
    optimizer_seconds: float

    @property
    def loss(self) -> float:
        """Mean loss over seeds."""
        return mean(self.losses)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds; one seed has none."""
        return stdev(self.losses) if len(self.losses) > 1 else None

    @property
    def percents(self) -> list[float]:
        """The differences in percent of the mean 32-bit loss of the same seeds."""
        return [] if self.baseline is None else [100 * difference / self.baseline for difference in self.differences]

    @property
    def percent(self) -> float | None:
        """Mean difference in percent; None for 32 bits itself and if it is missing."""
        return mean(self.percents) if self.percents else None

    @property
    def percent_error(self) -> float | None:
        """The standard error of :attr:`percent`."""
        many = len(self.percents)
        return stdev(self.percents) / many**0.5 if many > 1 else None


def rows(outcomes: Sequence[Outcome], order: Sequence[str]) -> list[Row]:
    """One row for each variant that has runs, in the given order."""
    baselines = {outcome.seed: outcome.loss for outcome in outcomes if outcome.variant == BASELINE}
    present = {outcome.variant for outcome in outcomes}
    return [
        _row([outcome for outcome in outcomes if outcome.variant == name], baselines)
        for name in order
        if name in present
    ]


def _row(runs: Sequence[Outcome], baselines: Mapping[int, float]) -> Row:
    first = runs[0]
    paired = [run for run in runs if run.seed in baselines and first.variant != BASELINE]
    return Row(
        variant=first.variant,
        losses=[run.loss for run in runs],
        differences=[run.loss - baselines[run.seed] for run in paired],
        baseline=mean(baselines[run.seed] for run in paired) if paired else None,
        bytes_per_parameter=first.state_bytes / first.parameters,
        packed_share=first.packed_parameters / first.parameters,
        skipped_elements=sum(run.skipped_elements for run in runs),
        step_seconds=median(run.seconds / run.steps for run in runs),  # a machine that slept spoils one seed only
        optimizer_seconds=median(run.optimizer_seconds / run.steps for run in runs),
    )


def cells(row: Row) -> tuple[str, ...]:
    """Return the columns as text."""
    return (
        row.variant,
        f"{row.loss:.4f}",
        _number(row.deviation, ".4f"),
        difference(row),
        f"{row.bytes_per_parameter:.3f}",
        f"{1e3 * row.step_seconds:.1f}",
        f"{1e3 * row.optimizer_seconds:.1f}",
        str(len(row.losses)),
    )


def difference(row: Row) -> str:
    """Return the difference as text, such as ``+0.31 ± 0.12 %``."""
    if row.percent is None:
        return NOTHING
    error = "" if row.percent_error is None else f" ± {row.percent_error:.2f}"
    return f"{row.percent:+.2f}{error} %"


def terminal(found: Sequence[Row]) -> Table:
    """A table for the screen."""
    table = Table("Held-out loss, mean over seeds", COLUMNS)
    for row in found:
        table.add(*cells(row))
    return table


def save(found: Sequence[Row], conditions: Mapping[str, Any], path: Path) -> None:
    """Write the table in markdown, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(markdown(found, conditions), encoding="utf-8")
    temporary.replace(path)


def markdown(found: Sequence[Row], conditions: Mapping[str, Any]) -> str:
    """Return the conditions, the table and the meaning of its columns."""
    lines = ["| " + " | ".join(row) + " |" for row in (COLUMNS, ["---"] * len(COLUMNS), *map(cells, found))]
    skipped = [f"{row.variant}: {row.skipped_elements:,}" for row in found if row.skipped_elements]
    if skipped:
        lines += ["", f"Elements skipped as not finite: {'; '.join(skipped)}."]
    return "\n".join(["# Held-out loss by variant", "", _setting(found, conditions), "", *lines, "", EXPLANATION, ""])


def _setting(found: Sequence[Row], conditions: Mapping[str, Any]) -> str:
    config, place = conditions["config"], conditions["environment"]
    packed = max((row.packed_share for row in found), default=0.0)
    return (
        f"Byte-level transformer ({config['layers']} layers of width {config['width']}) on Python's standard library; "
        f"{config['steps']:,} steps of {config['batch']} x {config['context']} bytes, peak learning rate "
        f"{config['lr']:g}, gradients clipped to norm {config['clip']:g}. {100 * packed:.1f} % of the parameters have "
        f"quantised state where there is any. Backend {config['backend'] or 'chosen automatically'}, torch "
        f"{place['torch']}, {place['machine']}, threads: {place['threads']}."
    )


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)
