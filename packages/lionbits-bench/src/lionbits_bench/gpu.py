"""The programme of one call on a machine with a GPU: the court, speed, host time, launches, recorded steps.

Each part has a share of the time; what one leaves over goes to those behind it. Nothing ends the programme: a part
that fails, or that time cuts short, says so in the results, and the next one begins.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from . import court, environment, report, workloads
from .contestants import Contestant, lions, peers, peers_found
from .cuda import CudaClock
from .measure import Bench, Effort, Heat, count_heat, judge, time_heat
from .replay import try_replay
from .results import Findings, Part, Results, Verdict, in_a_line
from .timing import Clock, CopyMeter, Deadline, HostClock
from .workloads import Family, Workload

COMPLETE, FAILED, CUT_SHORT = 0, 1, 3

#: Seconds before the end in which nothing is measured any more.
RESERVE = 10.0


@dataclass(frozen=True)
class Programme:
    """What is measured, on which device, how often. :func:`full` and :func:`trial` differ in nothing else."""

    device: torch.device
    families: tuple[Family, ...]
    effort: Effort
    many: Workload
    host_effort: Effort
    replayed: Workload
    copy_bytes: int
    profile: str
    court_arguments: tuple[str, ...] = ()


def full() -> Programme:
    """On a GPU."""
    return Programme(
        device=torch.device("cuda", torch.cuda.current_device()),
        families=(
            workloads.one_tensor_family(30),
            workloads.falling(workloads.llama, 32),
            (workloads.uniform(10_000, (100,)),),
            (workloads.resnet50(),),
            (workloads.resnet50(channels_last=True),),
            (workloads.gpt2(),),
        ),
        effort=Effort(rounds=3, warm=3, steps=20, host_steps=5, seconds=0.3),
        many=workloads.uniform(300, (128, 128)),
        host_effort=Effort(rounds=3, warm=5, steps=30, host_steps=100, seconds=1.0),
        replayed=workloads.gpt2(),
        copy_bytes=1 << 31,
        profile="ci",
    )


def trial() -> Programme:
    """The same on the CPU, with sizes that say nothing about speed."""

    def llama(layers: int) -> Workload:
        return workloads.llama(layers, of=2, width=64, hidden=172, vocabulary=96)

    def resnet50(channels_last: bool) -> Family:
        return (workloads.resnet50(stem=4, blocks=(1, 1), classes=10, channels_last=channels_last),)

    gpt2 = workloads.gpt2(layers=1, width=64, vocabulary=80, context=16)
    return Programme(
        device=torch.device("cpu"),
        families=(
            workloads.one_tensor_family(12),
            workloads.falling(llama, 2),
            (workloads.uniform(50, (100,)),),
            resnet50(channels_last=False),
            resnet50(channels_last=True),
            (gpt2,),
        ),
        effort=Effort(rounds=2, warm=1, steps=1, host_steps=1, seconds=0.1),
        many=workloads.uniform(30, (64, 64)),
        host_effort=Effort(rounds=1, warm=1, steps=2, host_steps=3, seconds=0.1),
        replayed=gpt2,
        copy_bytes=1 << 20,
        profile="dev",
        court_arguments=("-k", "supports or every_code"),
    )


class Run:
    """One run of a programme: its results, and where they are written."""

    def __init__(self, programme: Programme, wanted: Sequence[str] | None, out: Path, results: Results) -> None:
        self.programme, self.wanted, self.out, self.results = programme, wanted, out, results
        self._begin = time.monotonic()

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"[{time.monotonic() - self._begin:5.0f} s] {text}", flush=True)

    def save(self) -> None:
        """Write everything found so far."""
        report.save(self.results, self.out)

    @cached_property
    def bench(self) -> Bench:
        """Clock and copy, made when the first part needs them."""
        device = self.programme.device
        clock: Clock = CudaClock(device) if device.type == "cuda" else HostClock()
        size = min(self.programme.copy_bytes, clock.free_bytes() // 16)
        return Bench(clock, CopyMeter(clock, size), self.say)

    def contestants(self, dtype: str) -> list[Contestant]:
        """Everyone."""
        return [*lions(self.results.backends, dtype), *peers(dtype)]

    def heats(self, *families: Family) -> list[Heat]:
        """bf16 first, as large models are trained; families in their order."""
        return [Heat(family, self.contestants(dtype)) for dtype in ("bf16", "fp32") for family in families]


def look(run: Run, deadline: Deadline, findings: Findings) -> None:
    """Machine, versions, who can serve, who is there to compare with."""
    del deadline
    device, results = run.programme.device, run.results
    results.environment = environment.describe(device)
    results.diagnoses = environment.diagnoses(device)
    results.peers = peers_found()
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


def race(run: Run, deadline: Deadline, findings: Findings) -> None:
    """The workloads."""
    heats = run.heats(*run.programme.families)
    for i, heat in enumerate(heats):
        share = 1 / (len(heats) - i)
        try:
            run.results.copies += time_heat(heat, run.bench, run.programme.effort, share, deadline, run.results.speed)
        except Exception as error:  # noqa: BLE001 - the other workloads are measured all the same
            findings.failed.append(f"{heat.family[0].name}: {in_a_line(error)}")
        run.save()
    judge(run.results.speed, findings)


def race_host(run: Run, deadline: Deadline, findings: Findings) -> None:
    """How long the call of a step takes with many tensors, whatever the device does meanwhile."""
    heats = run.heats((run.programme.many,))
    for i, heat in enumerate(heats):
        share, effort = 1 / (len(heats) - i), run.programme.host_effort
        run.results.copies += time_heat(heat, run.bench, effort, share, deadline, run.results.host)
    judge(run.results.host, findings)


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
PARTS: dict[str, tuple[float, Callable[[Run, Deadline, Findings], None]]] = {
    "environment": (2, look),
    "court": (36, hold_court),
    "speed": (40, race),
    "host": (6, race_host),
    "launches": (8, count),
    "replay": (8, record),
}


def run(programme: Programme, wanted: Sequence[str] | None, out: Path, minutes: float, seconds_gone: float = 0) -> int:
    """All parts. The exit code is 0 where everything was done, 1 where something failed, 3 where time was short."""
    out.mkdir(parents=True, exist_ok=True)
    dry = programme.device.type == "cpu"
    results = Results(dry, str(programme.device), minutes, [], {name: Part() for name in PARTS})
    running = Run(programme, wanted, out.resolve(), results)
    deadline = Deadline(60 * minutes - seconds_gone - RESERVE)
    gc.collect()
    gc.freeze()  # what was imported need not be searched after every measurement
    ahead = sum(share for share, _ in PARTS.values())
    for name, (share, function) in PARTS.items():
        _run_part(running, name, function, deadline.share(share / ahead))
        ahead -= share
    gc.unfreeze()
    print(report.summary(results))
    print(f"\n{out / 'results.md'}, {out / 'results.json'}", flush=True)
    return FAILED if results.failed else CUT_SHORT if results.unfinished else COMPLETE


def _run_part(running: Run, name: str, function: Callable[[Run, Deadline, Findings], None], deadline: Deadline) -> None:
    part = running.results.parts[name]
    part.status, part.limit_seconds, begin = "started", deadline.left, time.monotonic()
    running.save()
    running.say(f"{name}: at most {deadline.left:.0f} s")
    try:
        function(running, deadline, part.findings)
    except Exception as error:  # noqa: BLE001 - reported; the next part begins
        traceback.print_exc()
        part.findings.failed.append(in_a_line(error))
    part.seconds = time.monotonic() - begin
    part.status = "failed" if part.findings.failed else "cut short" if part.findings.unfinished else "complete"
    running.save()
