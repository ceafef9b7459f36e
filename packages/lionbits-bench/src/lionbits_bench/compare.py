"""``lionbits-bench compare``: two results of the same suite, row by row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lionbits_cli.console import Table, show

from .results import MEASURED, spread
from .tables import NOTHING, milliseconds

#: Fields that are equal in rows of the same measurement.
KEY = ("workload", "remark", "dtype", "name", "variant")

Key = tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """Median steps of one row in both files; None if a file lacks the row."""

    key: Key
    first: list[float]
    second: list[float]

    @property
    def ratio(self) -> float | None:
        """Ratio of the second median to the first: below 1, the second is faster."""
        return median(self.second) / median(self.first) if self.first and self.second else None

    @property
    def flag(self) -> str:
        """Slower, faster, or in one file only; empty if the medians differ by no more than either spreads."""
        if not self.first or not self.second:
            return "only in the first" if self.first else "only in the second"
        difference = median(self.second) - median(self.first)
        if abs(difference) <= max(spread(self.first) or 0.0, spread(self.second) or 0.0):
            return ""
        return "slower" if difference > 0 else "faster"


def changes(first: dict[str, Any], second: dict[str, Any]) -> Iterator[tuple[str, list[Change]]]:
    """Yield part by part the rows that either file has measured, in the order of the first."""
    for part in MEASURED:
        one, other = _samples(first, part), _samples(second, part)
        keys = dict.fromkeys((*one, *other))
        yield part, [Change(key, one.get(key, []), other.get(key, [])) for key in keys]


def run(first: Path, second: Path) -> int:
    """Print the table of every part; differences are no failure."""
    for part, rows in changes(*(json.loads(path.read_text(encoding="utf-8")) for path in (first, second))):
        if rows:
            show(_table(part, rows, first, second))
    return 0


def _samples(results: dict[str, Any], part: str) -> dict[Key, list[float]]:
    rows = (row for row in results.get(part, []) if row["seconds"])
    return {tuple(str(row[name]) for name in KEY): list(row["seconds"]) for row in rows}


def _table(part: str, rows: list[Change], first: Path, second: Path) -> Table:
    columns = ("parameters", "dtype", "who", "variant", "first ms", "±", "second ms", "± ", "ratio", "")
    caption = f"first: {first}; second: {second}; marked: medians apart by more than both interquartile ranges"
    table = Table(part, columns, caption, left=("dtype", "who", "variant", ""))
    for change in rows:
        workload, remark, dtype, name, variant = change.key
        where = f"{workload}: {remark}" if remark else workload
        ratio = NOTHING if change.ratio is None else f"{change.ratio:.3f}"
        table.add(where, dtype, name, variant, *_figures(change.first), *_figures(change.second), ratio, change.flag)
    return table


def _figures(seconds: list[float]) -> tuple[str, str]:
    return milliseconds(median(seconds) if seconds else None), milliseconds(spread(seconds))
