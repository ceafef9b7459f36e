"""``lionbits report``: QLion's detailed test, as three charts and a list of checks.

Three parameter groups with settings of their own, 1,000 steps on one batch, and at step 10 noise of deviation
10 on one gradient. "Update norm" is the norm of the parameters' change in the step; the original
plotted the momentum of the unquantised biases under that name.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from . import charts, results, targets
from .config import check_seed
from .console import CommandError, Table, require, show
from .experiment import COVERAGE_WANTED, EXPLODING, EXPLOSION_STEP, Record, measure

DEFAULT_OUT = Path("lionbits-report")


@dataclass(frozen=True)
class Check:
    """A sentence, True if it holds, and the numbers that show it."""

    what: str
    passed: bool
    figures: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add options for length, seed and place; the rest of the test is fixed."""
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of model, data and explosion (default 0)")
    parser.add_argument("--out", type=targets.path, default=DEFAULT_OUT, metavar="DIR", help=f"default {DEFAULT_OUT}")


def run(args: argparse.Namespace) -> int:
    """Measure, check, draw; the exit code is 1 if a check fails."""
    require("matplotlib", "rich")
    if args.steps < 2 * EXPLOSION_STEP:
        raise CommandError(f"--steps must be at least {2 * EXPLOSION_STEP}: the explosion is at {EXPLOSION_STEP}")
    check_seed(args.seed)
    targets.prepare_folder(args.out, ("report.png", "report.json"))
    record = measure(args.steps, args.seed)
    checks = check(record)
    charts.report_chart(record, args.out / "report.png")
    results.write_json(
        args.out / "report.json",
        {
            "schema": results.SCHEMA,
            "passed": all(check.passed for check in checks),
            "checks": [asdict(check) for check in checks],
            "record": asdict(record),
        },
    )
    show(as_table(checks))
    print(f"{args.out / 'report.png'} and report.json")
    return 0 if all(check.passed for check in checks) else 1


def check(record: Record) -> list[Check]:
    """Return the checks of the original test; the last one checks effects, as p.grad is not modified."""
    first, last = record.losses[0], record.losses[-1]
    coverage = min(record.coverage)
    smallest = min(record.update_norms)
    return [
        Check("the loss fell", last < first, f"{first:.4g} to {last:.4g}"),
        Check(
            "at least half of the elements have 4-bit state",
            coverage >= COVERAGE_WANTED,
            f"{100 * coverage:.1f} %",
        ),
        Check(
            "all parameters are finite",
            record.finite,
            "no NaN, no infinity" if record.finite else "they are not",
        ),
        Check("every step moved the parameters", smallest > 0, f"smallest update norm {smallest:.2e}"),
        exploded(record),
        clipped(record),
        bounded(record),
    ]


def exploded(record: Record) -> Check:
    """Check that there was an explosion, without which the next two checks mean nothing."""
    norm = max((seen.gradient for seen in record.explosion if seen.name == EXPLODING), default=math.nan)
    return Check(f"step {EXPLOSION_STEP} had an exploded gradient", norm > 100 * record.clip, f"norm {norm:.1f}")


def clipped(record: Record) -> Check:
    """Check that no tensor's momentum took in more than a gradient of the clipping norm can give."""
    passed = all(seen.momentum <= seen.momentum_bound for seen in record.explosion)
    seen = next((seen for seen in record.explosion if seen.name == EXPLODING), None)
    figures = f"momentum {seen.momentum:.2e}, bound {seen.momentum_bound:.2e}" if seen else "nothing to see"
    return Check(f"it was clipped to {record.clip}", bool(seen) and passed, figures)


def bounded(record: Record) -> Check:
    """Check that no tensor moved by more than the learning rate per element, weight decay apart."""
    passed = all(seen.change <= seen.change_bound for seen in record.explosion)
    ratios = [seen.change / seen.change_bound for seen in record.explosion]
    figures = f"largest change {100 * max(ratios):.1f} % of its bound" if ratios else "nothing to see"
    return Check("it moved no tensor further than a step may", bool(ratios) and passed, figures)


def as_table(checks: list[Check]) -> Table:
    """Return one row per check."""
    drawn = Table("QLion's detailed test", ("check", "result", "figures"), left=("figures",))
    for check in checks:
        drawn.add(check.what, "pass" if check.passed else "FAIL", check.figures)
    return drawn
