"""Rounds: candidates that take turns on the same tensors, A B C A B C, with a copy measured between any two.

If a device warms up, or another process begins to use it, all candidates and the copy slow down alike, not only the
last. In each round an optimizer is built anew, so only one state is in memory at a time.
"""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from . import rule, traffic, workloads
from .candidates import DTYPES, Candidate
from .results import Check, Findings, Row, in_a_line
from .timing import Clock, CopyMeter, Deadline, TooSlow, host_time, limited, wall_time
from .workloads import Family

Say = Callable[[str], None]

NOT_REACHED = "not reached"


class Round(NamedTuple):
    """A workload and the candidates that are measured on it; all have the same dtype."""

    family: Family
    candidates: Sequence[Candidate]


@dataclass(frozen=True)
class Effort:
    """Numbers and durations of the measurements of an optimizer in a round.

    Attributes:
        rounds: turns that each candidate has.
        warm: steps before measuring.
        steps: timed steps, at most.
        host_steps: steps whose call alone is timed, at most; none where that is all there is to time.
        seconds: after which a slow candidate is content with fewer, down to one.
        limit: seconds after which a turn is ended, compiling included.
        wall: steps are timed from an idle device to an idle device, whatever streams they use.
    """

    rounds: int
    warm: int
    steps: int
    host_steps: int
    seconds: float
    limit: float | None = None
    wall: bool = False


@dataclass
class Bench:
    """Objects that all measurements share."""

    clock: Clock
    meter: CopyMeter
    say: Say


def time_round(
    round_: Round, bench: Bench, effort: Effort, share: float, deadline: Deadline, rows: list[Row]
) -> list[float]:
    """Time all candidates; return the bandwidths of the copies.

    ``rows`` has all of them from the beginning, as not reached. The time of compilation does not count: the first round
    may go on until the deadline, and later ones until the round has had its ``share``.
    """
    workload, fresh = _rows(round_, bench.clock)
    rows += fresh
    before = bench.clock.allocated() or 0
    tensors = workloads.tensors(workload, DTYPES[fresh[0].dtype], bench.clock.device)
    beside = []
    later_rounds = deadline.share(share)
    for turn in range(effort.rounds):
        if turn:
            bench.say(f"{workload.name}, {fresh[0].dtype}: round {turn + 1} of {effort.rounds}")
        for candidate, row in zip(round_.candidates, fresh, strict=True):
            if deadline.expired or (turn and (row.problem or later_rounds.expired)):
                continue
            beside.append(bench.meter.bandwidth())
            use = partial(_time, row, bench.clock, effort, before)
            _attempt(candidate, tensors, bench.clock, row, use, effort.limit)
            if row.problem or turn == 0:
                bench.say(f"{row.workload}: {row.title}: {row.problem or _glance(row, median(beside))}")
    beside.append(bench.meter.bandwidth())
    for row in fresh:
        row.copy_bandwidth = median(beside)
    return beside


def count_round(round_: Round, bench: Bench, deadline: Deadline, rows: Sequence[Row], findings: Findings) -> None:
    """Add the launches and waits of each candidate to rows that were timed before."""
    workload, fresh = _rows(round_, bench.clock)
    timed = {(row.workload, row.title): row for row in rows}
    tensors = workloads.tensors(workload, DTYPES[fresh[0].dtype], bench.clock.device)
    missing = []
    for candidate, attempt in zip(round_.candidates, fresh, strict=True):
        row = timed.get((attempt.workload, attempt.title))
        if row is None or row.problem:
            continue
        if deadline.expired:
            missing.append(row)
            continue
        _attempt(candidate, tensors, bench.clock, attempt, partial(_count, row, bench.clock))
        if attempt.problem:
            kind = findings.failed if row.ours else findings.unfinished
            kind.append(f"{row.title} on {row.workload}: {attempt.problem}")
    _not_reached(missing, findings)


def check(candidate: Candidate, clock: Clock, limit: float | None) -> Check:
    """Check a candidate's rule before it is timed; an error is part of the result."""
    begin = time.perf_counter()
    try:
        with limited(limit):
            found = rule.result(candidate.check, candidate.build, clock.device)
    except TooSlow as slow:
        found = str(slow)
    clock.wait()
    return Check(candidate.name, candidate.variant, found, time.perf_counter() - begin)


def report_problems(rows: Sequence[Row], findings: Findings) -> None:
    """Report the rows without numbers. A peer's failure is noted in its row and is no failure of this run."""
    for row in rows:
        if row.problem and row.problem != NOT_REACHED and row.ours:
            findings.failed.append(f"{row.title} on {row.workload}: {row.problem}")
    _not_reached([row for row in rows if row.problem == NOT_REACHED], findings)


def _not_reached(rows: Sequence[Row], findings: Findings) -> None:
    """Report one sentence per round; the rows name the candidates."""
    for (name, dtype), count in Counter((row.workload, row.dtype) for row in rows).items():
        findings.unfinished.append(f"{name}, {dtype}: {count} not measured")


def _rows(round_: Round, clock: Clock) -> tuple[workloads.Workload, list[Row]]:
    most = max(candidate.bytes_per_element for candidate in round_.candidates)
    workload = workloads.fitting(round_.family, clock.free_bytes(), most)
    size = len(workload.shapes), workload.elements
    return workload, [
        Row(workload.name, workload.remark, *size, c.dtype, c.name, c.variant, c.ours, problem=NOT_REACHED)
        for c in round_.candidates
    ]


def _attempt(
    candidate: Candidate,
    tensors: list[Tensor],
    clock: Clock,
    row: Row,
    use: Callable[[Optimizer], None],
    limit: float | None = None,
) -> None:
    """Build an optimizer for the duration of its use; an error is noted in its row and raised no further."""
    row.problem = ""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with limited(limit):
            use(candidate.build(tensors))
    except TooSlow as slow:
        row.problem = str(slow)
    except Exception as error:  # noqa: BLE001 - the row reports whatever goes wrong
        row.problem = in_a_line(error)
    finally:
        if collecting:
            gc.enable()
    gc.collect()  # state in a reference cycle would be counted as the next one's
    clock.release()


def _time(row: Row, clock: Clock, effort: Effort, before: int, optimizer: Optimizer) -> None:
    begin = start = time.perf_counter()
    peak = clock.peak(optimizer.step)  # the first step makes the state, and kernels, and may take seconds
    clock.wait()
    each = time.perf_counter() - begin
    row.first_step_seconds = row.first_step_seconds or each
    for _ in range(effort.warm):
        begin = time.perf_counter()
        peak = max(peak or 0, clock.peak(optimizer.step) or 0) or None
        clock.wait()
        each = time.perf_counter() - begin

    row.start_seconds = row.start_seconds or time.perf_counter() - start

    def often(most: int) -> range:
        return range(min(most, max(1, math.floor(effort.seconds / max(each, 1e-9)))))

    host = [host_time(clock, optimizer.step) for _ in often(effort.host_steps)]
    row.host_seconds += host
    if effort.wall:
        row.seconds += [wall_time(clock, optimizer.step) for _ in often(effort.steps)]
    else:
        row.seconds += [clock.time(optimizer.step, median(host or [0.0])) for _ in often(effort.steps)]
    row.floor_bytes, row.held_bytes = traffic.floor_bytes(optimizer), traffic.held_bytes(optimizer)
    so_far = traffic.paging_stats(optimizer)
    grown = clock.growth(optimizer.step)
    row.moved = traffic.moved(optimizer, so_far)
    row.grown_bytes = None if grown is None else max(grown, row.grown_bytes or 0)
    row.peak_bytes = None if peak is None else max(peak - before, row.peak_bytes or 0)


def _count(row: Row, clock: Clock, optimizer: Optimizer) -> None:
    optimizer.step()
    row.waits = clock.waits(optimizer.step)
    counted = clock.launches(optimizer.step)
    row.kernels, row.transfers = counted or (None, None)


def _glance(row: Row, copy: float) -> str:
    step, bandwidth = row.step_seconds, row.bandwidth
    assert step is not None
    assert bandwidth is not None
    return f"{1e3 * step:.3f} ms, {100 * bandwidth / copy:.0f} % of a copy"
