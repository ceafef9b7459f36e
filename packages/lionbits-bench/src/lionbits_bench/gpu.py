"""The programme of one call on a machine with a GPU: the court, speed, host time, paging, launches, recorded steps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import bus, court, memory, paged, programme, report, workloads
from .contestants import Contestant, lions
from .measure import Effort, count_heat, judge, time_heat
from .paged import Paging
from .peers import peers
from .programme import COMPLETE, CUT_SHORT, FAILED, Parts, Programme, look, race
from .replay import try_replay
from .results import Findings, Part, Results, Row, Verdict
from .timing import Deadline
from .workloads import Family, Workload

__all__ = ["COMPLETE", "CUT_SHORT", "FAILED", "full", "run", "trial"]

#: Seconds before the end in which nothing is measured any more.
RESERVE = 10.0

#: The libraries that a short time on a GPU is spent on; all others are for ``lionbits-bench run``.
PEERS = ("torch", "bitsandbytes", "lion-pytorch", "flashoptim")


@dataclass(frozen=True, kw_only=True)
class OneCall(Programme):
    """What one call does beside timing. :func:`full` and :func:`trial` differ in nothing else."""

    many: Workload
    host_effort: Effort
    replayed: Workload
    paging: Paging
    profile: str
    court_arguments: tuple[str, ...] = ()


class Run(programme.Run):
    """One call."""

    programme: OneCall


def everyone(device: torch.device, backends: Sequence[str], dtype: str, *, managed: bool) -> list[Contestant]:
    """lionbits, and the peers that compile nothing first."""
    return [*lions(backends, dtype), *peers(dtype, device, PEERS, compiled=False, managed=managed)]


def full(*, managed: bool = False) -> OneCall:
    """On a GPU; bf16 first, as large models are trained. ``managed`` lets in what pages by managed memory."""
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
    """Lists whose state of 32 bits is a small part of what the host has left, where it will be pinned."""
    most = memory.available() // 4
    return tuple(workload for workload in family if 4 * workload.elements <= most) or family[-1:]


def trial(*, managed: bool = False) -> OneCall:
    """The same on the CPU, with sizes that say nothing about speed."""
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
        court_arguments=("-k", "supports or every_code"),
    )


def hold_court(run: Run, deadline: Deadline, findings: Findings) -> None:
    """Every backend before the court, for an equal part of the time each."""
    names = run.results.backends
    for i, name in enumerate(names):
        verdict = Verdict(name, run.programme.device.type, run.programme.profile)
        run.results.court.append(verdict)
        part = deadline.share(1 / (len(names) - i))
        court.hold(verdict, run.out, part, run.programme.court_arguments, findings)
        how = "" if verdict.finished else ", not finished"
        run.say(f"court: {name}: {verdict.passed} passed, {verdict.failed} failed{how}")
        run.save()


def race_host(run: Run, deadline: Deadline, findings: Findings) -> None:
    """How long the call of a step takes with many tensors, whatever the device does meanwhile."""
    heats = run.heats((run.programme.many,))
    for i, heat in enumerate(heats):
        share, effort = 1 / (len(heats) - i), run.programme.host_effort
        run.results.copies += time_heat(heat, run.bench, effort, share, deadline, run.results.host)
    judge(run.results.host, findings)


def page(run: Run, deadline: Deadline, findings: Findings) -> None:
    """The bus, then steps whose state crosses it."""
    paging, results, clock = run.programme.paging, run.results, run.bench.clock
    results.bus = bus.measure(clock, paging.bus_sizes, paging.bus_bytes, deadline, findings)
    run.save()
    heats = list(paged.heats(paging, results.backends, run.programme.device))
    for i, (heat, effort) in enumerate(heats):
        rows: list[Row] = []
        results.copies += time_heat(heat, run.bench, effort, 1 / (len(heats) - i), deadline, rows)
        paged.complete(rows, results.bus)
        results.paging += rows
        run.save()
    judge(results.paging, findings)


def count(run: Run, deadline: Deadline, findings: Findings) -> None:
    """Launches of everything that was timed."""
    for rows, families in ((run.results.host, ((run.programme.many,),)), (run.results.speed, run.programme.families)):
        for heat in run.heats(*families):
            count_heat(heat, run.bench, deadline, rows, findings)


def record(run: Run, deadline: Deadline, findings: Findings) -> None:
    """Recorded steps of every variant, bf16."""
    for contestant in lions(run.results.backends, "bf16"):
        if deadline.expired:
            findings.unfinished.append(f"{contestant.name} {contestant.variant}")
            continue
        result = try_replay(contestant, run.programme.replayed, run.bench.clock, findings)
        run.results.replay.append(result)
        run.bench.clock.release()
        run.say(f"replay: {result.name} {result.variant}: {result.problem or result.difference or 'the same bits'}")


#: The parts, their shares of the time, what they do. The profiler slows what comes behind it, and an error while
#: recording may leave the device unusable: these two come last.
PARTS: Parts[Run] = {
    "environment": (2, look),
    "court": (33, hold_court),
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
    """All parts, in time, or some, for which the first finds out who serves."""
    chosen = {name: part for name, part in PARTS.items() if parts is None or name in ("environment", *parts)}
    dry = plan.device.type == "cpu"
    results = Results(dry, str(plan.device), minutes, [], {name: Part() for name in chosen})
    results.managed = plan.paging.managed
    code = programme.carry_out(chosen, Run(plan, wanted, out.resolve(), results), _until(minutes, seconds_gone))
    print(report.summary(results))
    print(f"\n{out / 'results.md'}, {out / 'results.json'}", flush=True)
    return code


def _until(minutes: float, seconds_gone: float) -> Deadline:
    return Deadline(60 * minutes - seconds_gone - RESERVE)
