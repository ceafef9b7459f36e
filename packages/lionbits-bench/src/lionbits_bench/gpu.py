"""All measurements of one run on a GPU: conformance, speed, host time, paging, launches, recorded steps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import bus, conformance, memory, paged, report, suite, workloads
from .candidates import Candidate, lions
from .measure import Effort, count_round, report_problems, time_round
from .paged import Paging
from .peers import peers
from .replay import try_replay
from .results import Findings, Part, Results, Row, SuiteResult
from .suite import COMPLETE, CUT_SHORT, FAILED, Parts, Suite, look, race
from .timing import Deadline
from .workloads import Family, Workload

__all__ = ["COMPLETE", "CUT_SHORT", "FAILED", "dry_run", "full", "run"]

#: Seconds before the end in which nothing is measured any more.
RESERVE = 10.0

#: The libraries that a short time on a GPU is spent on; all others are for ``lionbits-bench run``.
PEERS = ("torch", "bitsandbytes", "lion-pytorch", "flashoptim")


@dataclass(frozen=True, kw_only=True)
class OneCall(Suite):
    """The measurements of a run beside timing. :func:`full` and :func:`dry_run` differ in nothing else."""

    many: Workload
    host_effort: Effort
    replayed: Workload
    paging: Paging
    profile: str
    suite_arguments: tuple[str, ...] = ()


class Run(suite.Run):
    """One run."""

    suite: OneCall


def everyone(device: torch.device, backends: Sequence[str], dtype: str, *, managed: bool) -> list[Candidate]:
    """Return lionbits' candidates, and peers, those that compile nothing first."""
    return [*lions(backends, dtype), *peers(dtype, device, PEERS, compiled=False, managed=managed)]


def full(*, managed: bool = False) -> OneCall:
    """Return the suite for a GPU, bf16 first, as large models are trained.

    ``managed`` adds peers that page by managed memory.
    """
    device, lists = torch.device("cuda", torch.cuda.current_device()), workloads.full(30)
    names = ("tensor", "llama", "small", "resnet50", "channels-last", "gpt2")
    return OneCall(
        device=device,
        families=tuple(lists[name] for name in names),
        dtypes=("bf16", "fp32"),
        everyone=lambda backends, dtype: everyone(device, backends, dtype, managed=managed),
        peers=PEERS,
        effort=Effort(rounds=3, warm=3, steps=20, host_steps=5, seconds=0.3),
        many=workloads.uniform(300, (128, 128)),
        host_effort=Effort(rounds=3, warm=5, steps=30, host_steps=100, seconds=1.0),
        replayed=workloads.gpt2(),
        paging=Paging(
            family=_in_host_memory(workloads.falling(workloads.llama, 4)),
            effort=Effort(rounds=1, warm=2, steps=10, host_steps=0, seconds=0.3, wall=True),
            host_family=_in_host_memory(workloads.llama_family()[-1:]),
            host_effort=Effort(rounds=1, warm=1, steps=5, host_steps=0, seconds=1.0, limit=60.0, wall=True),
            managed=managed,
        ),
        copy_bytes=1 << 31,
        profile="ci",
    )


def _in_host_memory(family: Family) -> Family:
    """Return the lists whose 32-bit state is a small part of free host memory, in which it will be pinned."""
    most = memory.available() // 4
    return tuple(workload for workload in family if 4 * workload.elements <= most) or family[-1:]


def dry_run(*, managed: bool = False) -> OneCall:
    """Return the same suite for the CPU, with sizes that say nothing about speed."""
    device, lists = torch.device("cpu"), workloads.tiny()
    names = ("tensor", "llama", "small", "resnet50", "channels-last", "gpt2")
    return OneCall(
        device=device,
        families=tuple(lists[name] for name in names),
        dtypes=("bf16", "fp32"),
        everyone=lambda backends, dtype: everyone(device, backends, dtype, managed=managed),
        peers=PEERS,
        effort=Effort(rounds=2, warm=1, steps=1, host_steps=1, seconds=0.1),
        many=workloads.uniform(30, (64, 64)),
        host_effort=Effort(rounds=1, warm=1, steps=2, host_steps=3, seconds=0.1),
        replayed=lists["gpt2"][0],
        paging=Paging(
            family=lists["llama"][-1:],
            effort=Effort(rounds=1, warm=1, steps=2, host_steps=0, seconds=0.1, wall=True),
            host_family=lists["tensor"],
            host_effort=Effort(rounds=1, warm=0, steps=1, host_steps=0, seconds=0.1, wall=True),
            host_backends=("reference",),
            bus_bytes=1 << 16,
            page_size=1 << 13,
            bus_sizes=(1 << 11, 1 << 12, 1 << 13, 1 << 15),
            page_sizes=(1 << 12, 1 << 13, 1 << 15),
            managed=managed,
        ),
        copy_bytes=1 << 20,
        profile="dev",
        suite_arguments=("-k", "supports or every_code"),
    )


def run_conformance(run: Run, deadline: Deadline, findings: Findings) -> None:
    """Run the conformance suite on every backend, for an equal part of the time each."""
    names = run.results.backends
    for i, name in enumerate(names):
        outcome = SuiteResult(name, run.suite.device.type, run.suite.profile)
        run.results.conformance.append(outcome)
        part = deadline.share(1 / (len(names) - i))
        conformance.hold(outcome, run.out, part, run.suite.suite_arguments, findings)
        how = "" if outcome.finished else ", not finished"
        run.say(f"conformance suite: {name}: {outcome.passed} passed, {outcome.failed} failed{how}")
        run.save()


def race_host(run: Run, deadline: Deadline, findings: Findings) -> None:
    """Time the call of a step with many tensors on the host, whatever the device does meanwhile."""
    rounds = run.rounds((run.suite.many,))
    for i, round_ in enumerate(rounds):
        share, effort = 1 / (len(rounds) - i), run.suite.host_effort
        run.results.copies += time_round(round_, run.bench, effort, share, deadline, run.results.host)
    report_problems(run.results.host, findings)


def page(run: Run, deadline: Deadline, findings: Findings) -> None:
    """Measure the bus, then steps with paged state."""
    paging, results, clock = run.suite.paging, run.results, run.bench.clock
    results.bus = bus.measure(clock, paging.bus_sizes, paging.bus_bytes, deadline, findings)
    run.save()
    rounds = list(paged.rounds(paging, results.backends, run.suite.device))
    for i, (round_, effort) in enumerate(rounds):
        rows: list[Row] = []
        results.copies += time_round(round_, run.bench, effort, 1 / (len(rounds) - i), deadline, rows)
        paged.complete(rows, results.bus)
        results.paging += rows
        run.save()
    report_problems(results.paging, findings)


def count(run: Run, deadline: Deadline, findings: Findings) -> None:
    """Count launches of every candidate that was timed."""
    for rows, families in ((run.results.host, ((run.suite.many,),)), (run.results.speed, run.suite.families)):
        for round_ in run.rounds(*families):
            count_round(round_, run.bench, deadline, rows, findings)


def record(run: Run, deadline: Deadline, findings: Findings) -> None:
    """Replay recorded steps of every variant, bf16."""
    for candidate in lions(run.results.backends, "bf16"):
        if deadline.expired:
            findings.unfinished.append(f"{candidate.name} {candidate.variant}")
            continue
        result = try_replay(candidate, run.suite.replayed, run.bench.clock, findings)
        run.results.replay.append(result)
        run.bench.clock.release()
        run.say(f"replay: {result.name} {result.variant}: {result.problem or result.difference or 'the same bits'}")


#: The parts, their shares of the time, what they do. The profiler slows what comes behind it, and an error while
#: recording may leave the device unusable: these two come last.
PARTS: Parts[Run] = {
    "environment": (2, look),
    "conformance": (33, run_conformance),
    "speed": (35, race),
    "host": (6, race_host),
    "paging": (10, page),
    "launches": (7, count),
    "replay": (7, record),
}


def run(
    plan: OneCall,
    wanted: Sequence[str] | None,
    out: Path,
    minutes: float,
    seconds_gone: float = 0,
    parts: Collection[str] | None = None,
) -> int:
    """Carry out all parts in the given time, or some parts, before which the first detects the backends."""
    chosen = {name: part for name, part in PARTS.items() if parts is None or name in ("environment", *parts)}
    dry = plan.device.type == "cpu"
    results = Results(dry, str(plan.device), minutes, [], {name: Part() for name in chosen})
    results.managed = plan.paging.managed
    code = suite.carry_out(chosen, Run(plan, wanted, out.resolve(), results), _until(minutes, seconds_gone))
    print(report.summary(results))
    print(f"\n{out / 'results.md'}, {out / 'results.json'}", flush=True)
    return code


def _until(minutes: float, seconds_gone: float) -> Deadline:
    return Deadline(60 * minutes - seconds_gone - RESERVE)
