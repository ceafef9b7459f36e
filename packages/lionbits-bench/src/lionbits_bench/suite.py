"""The common parts of suites: backends, rounds over lists of parameters, and parts that cannot end the run.

Each part has a share of the time, if time is limited; unused time goes to later parts. A part that
fails, or that runs out of time, says so in the results, and the next one begins.
"""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from . import environment, report
from .candidates import Candidate
from .cuda import CudaClock
from .measure import Bench, Effort, Round, report_problems, time_round
from .peers import peers_found
from .results import Findings, Results, in_a_line
from .timing import Clock, CopyMeter, Deadline, HostClock
from .workloads import Family

COMPLETE, FAILED, CUT_SHORT = 0, 1, 3

#: Makes everyone who is measured, for the backends that serve and a dtype.
Everyone = Callable[[Sequence[str], str], list[Candidate]]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Workloads, device and effort of a suite.

    Attributes:
        device: where.
        families: lists of parameters, each at falling sizes.
        dtypes: of parameters and gradients.
        everyone: makes the candidates.
        peers: names of libraries that are looked for.
        effort: of a turn.
        copy_bytes: of a buffer that is copied.
        memory: bytes that tensors may take on the CPU.
    """

    device: torch.device
    families: tuple[Family, ...]
    dtypes: tuple[str, ...]
    everyone: Everyone
    peers: Sequence[str]
    effort: Effort
    copy_bytes: int
    memory: int = 1 << 28


class Run:
    """One run of a suite: its results, and where they are written."""

    def __init__(self, suite: Suite, wanted: Sequence[str] | None, out: Path, results: Results) -> None:
        self.suite, self.wanted, self.out, self.results = suite, wanted, out, results
        self._begin = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line of progress."""
        print(f"[{time.monotonic() - self._begin:5.0f} s] {text}", flush=True)

    def save(self) -> None:
        """Write all results so far."""
        report.save(self.results, self.out)

    @cached_property
    def bench(self) -> Bench:
        """The clock and the copy, made when the first part needs them."""
        device = self.suite.device
        clock: Clock = CudaClock(device) if device.type == "cuda" else HostClock(self.suite.memory)
        size = min(self.suite.copy_bytes, clock.free_bytes() // 16)
        return Bench(clock, CopyMeter(clock, size), self.say)

    def candidates(self, dtype: str) -> list[Candidate]:
        """Return all candidates of a dtype."""
        return self.suite.everyone(self.results.backends, dtype)

    def rounds(self, *families: Family) -> list[Round]:
        """Return the rounds, dtype by dtype, families in their order."""
        return [Round(family, self.candidates(dtype)) for dtype in self.suite.dtypes for family in families]


R = TypeVar("R", bound=Run)
Parts = Mapping[str, tuple[float, Callable[[R, Deadline, Findings], None]]]


def look(run: Run, deadline: Deadline, findings: Findings) -> None:
    """Record machine, versions, usable backends and peers."""
    del deadline
    device, results = run.suite.device, run.results
    results.environment = environment.describe(device)
    results.diagnoses = environment.diagnoses(device)
    results.peers = peers_found(device, run.suite.peers)
    if run.wanted is None:
        able = [name for name, reason in results.diagnoses.items() if not reason]
        # On a GPU the reference is a yardstick of bits, not of speed, and would take most of the time.
        results.backends = [name for name in able if device.type == "cpu" or name != "reference"]
    else:
        asked = {name: results.diagnoses.get(name, "there is no such backend") for name in run.wanted}
        results.backends = [name for name, reason in asked.items() if not reason]
        findings.failed += [f"{name} cannot serve {device}: {reason}" for name, reason in asked.items() if reason]
    if not results.backends:
        findings.failed.append(f"no backend serves {device}")
    run.say(f"{results.environment['device']}; backends: {', '.join(results.backends) or 'none'}")


def race(run: Run, deadline: Deadline, findings: Findings) -> None:
    """Time the lists of parameters."""
    rounds = run.rounds(*run.suite.families)
    found = {(check.name, check.variant): check.found for check in run.results.checks}
    for i, round_ in enumerate(rounds):
        share = 1 / (len(rounds) - i)
        try:
            run.results.copies += time_round(round_, run.bench, run.suite.effort, share, deadline, run.results.speed)
        except Exception as error:  # noqa: BLE001 - the other lists are measured all the same
            findings.failed.append(f"{round_.family[0].name}: {in_a_line(error)}")
        for row in run.results.speed:
            row.computes = found.get((row.name, row.variant), "")
        run.save()
    report_problems(run.results.speed, findings)


def carry_out(parts: Parts[R], run: R, deadline: Deadline) -> int:
    """Run all parts. Return exit code 0 if everything was done, 1 if something failed, 3 if time was short."""
    run.out.mkdir(parents=True, exist_ok=True)
    gc.collect()
    gc.freeze()  # what was imported need not be searched after every measurement
    ahead = sum(share for share, _ in parts.values())
    for name, (share, function) in parts.items():
        _one_part(run, name, function, deadline.share(share / ahead))
        ahead -= share
    gc.unfreeze()
    return FAILED if run.results.failed else CUT_SHORT if run.results.unfinished else COMPLETE


def _one_part(run: R, name: str, function: Callable[[R, Deadline, Findings], None], deadline: Deadline) -> None:
    part, begin = run.results.parts[name], time.monotonic()
    limited = math.isfinite(deadline.left)
    part.status, part.limit_seconds = "started", deadline.left if limited else None
    run.save()
    run.say(f"{name}: at most {deadline.left:.0f} s" if limited else name)
    try:
        function(run, deadline, part.findings)
    except Exception as error:  # noqa: BLE001 - reported; the next part begins
        traceback.print_exc()
        part.findings.failed.append(in_a_line(error))
    part.seconds = time.monotonic() - begin
    part.status = "failed" if part.findings.failed else "cut short" if part.findings.unfinished else "complete"
    run.save()
