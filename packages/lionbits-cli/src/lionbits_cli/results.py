"""Results of a finished run: numbers for ``metrics.json``, a row for the table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lionbits.checkpoint import saving

from . import variants
from .console import Table, human_bytes
from .training import History, Run, environment

SCHEMA = 1


@dataclass(frozen=True)
class Result:
    """One run, detached from its model so that a comparison holds only one model at a time."""

    variant: str
    class_name: str
    config: dict[str, Any]
    parameters: int
    state_bytes: int
    skipped: int
    history: History
    paging: dict[str, int] | None = None  # what it moved, of a paged variant

    @classmethod
    def of(cls, run: Run) -> Result:
        return cls(
            variant=run.config.variant,
            class_name=type(run.optimizer).__name__,
            config=run.config.as_dict(),
            parameters=run.parameters,
            state_bytes=variants.state_bytes(run.optimizer),
            skipped=int(run.optimizer.skipped_elements()),
            history=run.history,
            paging=asdict(run.optimizer.paging_stats()) if run.config.variant.startswith("paged") else None,
        )

    @property
    def loss(self) -> float:
        return self.history.validation[-1][1]

    @property
    def bits_per_byte(self) -> float:
        return self.loss / math.log(2)

    @property
    def bytes_per_parameter(self) -> float:
        return self.state_bytes / self.parameters

    @property
    def step_share(self) -> float:
        return self.history.step_seconds / max(self.history.seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        tokens = len(self.history.train) * self.config["batch"] * self.config["context"]
        return float(tokens / max(self.history.seconds, 1e-9))

    def against(self, baseline: Result) -> float:
        """Return validation loss relative to another run's, in percent; negative is better."""
        return 100 * (self.loss / baseline.loss - 1)

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "variant": self.variant,
            "class": self.class_name,
            "config": self.config,
            "environment": environment(),
            "parameters": self.parameters,
            "validation": {"loss": self.loss, "bits_per_byte": self.bits_per_byte},
            "optimizer": {
                "state_bytes": self.state_bytes,
                "bytes_per_parameter": self.bytes_per_parameter,
                "step_seconds": self.history.step_seconds,
                "step_share": self.step_share,
                "skipped_elements": self.skipped,
            },
            "paging": self.paging,
            "seconds": self.history.seconds,
            "tokens_per_second": self.tokens_per_second,
            "history": {"train": self.history.train, "validation": self.history.validation},
        }


def twin(results: Sequence[Result], index: int) -> int | None:
    """Find an earlier run with the very same losses, as QLion and Lion4bit have where QLion's clipping is idle."""
    losses = results[index].history.train
    return next((i for i in range(index) if results[i].history.train == losses), None)


def comparison_json(results: Sequence[Result]) -> dict[str, Any]:
    """Return the runs without their curves (those are in the sub-folders), beside the first of them."""
    runs = {}
    for result in results:
        summary = result.as_json()
        del summary["history"]
        runs[result.variant] = {**summary, "against_baseline_percent": result.against(results[0])}
    return {"schema": SCHEMA, "baseline": results[0].variant, "runs": runs}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with saving.whole(path) as stream:
        stream.write((json.dumps(content, indent=1) + "\n").encode())


def table(results: Sequence[Result]) -> Table:
    """Return one row per run; a comparison column appears if there are several runs."""
    baseline = results[0]
    comparing = len(results) > 1
    columns = [
        "variant",
        "validation loss",
        "bits per byte",
        "state",
        "bytes/param",
        "in step",
        "share",
        "bytes/s",
    ]
    if comparing:
        columns.insert(2, f"against {baseline.variant}")
    drawn = Table(f"{baseline.parameters:,} parameters, {len(baseline.history.train)} steps", columns)
    for result in results:
        cells = [
            result.variant,
            f"{result.loss:.4f}",
            f"{result.bits_per_byte:.4f}",
            human_bytes(result.state_bytes),
            f"{result.bytes_per_parameter:.3f}",
            f"{result.history.step_seconds:.1f} s",
            f"{100 * result.step_share:.1f} %",
            f"{result.tokens_per_second:,.0f}",
        ]
        if comparing:
            cells.insert(2, "-" if result is baseline else f"{result.against(baseline):+.2f} %")
        drawn.add(*cells)
    drawn.caption = "Loss in nats per byte on held-out files; in step: seconds inside optimizer.step, their share."
    for i, result in enumerate(results):
        same = twin(results, i)
        if same is not None:
            drawn.caption += f"\n{result.variant} has the losses of {results[same].variant}, bit for bit."
        if result.paging is not None:
            drawn.caption += f"\n{paged(result.variant, result.paging)}"
    return drawn


def paged(variant: str, moved: dict[str, int]) -> str:
    """Return a sentence about the copies of a paged variant."""
    if not moved["bytes_in"]:
        return f"{variant} moved nothing: all its state can be reached where it is."
    return (
        f"{variant} copied {human_bytes(moved['bytes_in'])} to the device in {moved['pages_in']:,} pages and "
        f"{human_bytes(moved['bytes_out'])} back; {human_bytes(moved['resident_bytes'])} stay there."
    )
