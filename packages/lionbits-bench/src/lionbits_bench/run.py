"""``lionbits-bench run``: a step of every variant and backend beside a copy and the other libraries here.

The rules of all candidates are checked, then lists of parameters are timed, then one tensor of many sizes.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from . import charts, memory, report, suite, workloads
from .candidates import Candidate, lions
from .measure import Effort, Round, check, time_round
from .peers import peers
from .results import Findings, Part, Results
from .suite import Parts, Suite, look, race
from .timing import Deadline

#: Folder of the code that torch.compile has compiled.
CACHE = "TORCHINDUCTOR_CACHE_DIR"

#: Every list and every round is an optimizer of its own to torch.compile. Its usual limit is eight; the ninth would not
#: be compiled, and nothing would say so.
RECOMPILING = {
    "recompile_limit": 1 << 14,
    "accumulated_recompile_limit": 1 << 14,
    "fail_on_recompile_limit_hit": True,
}

#: A machine that others use, and an optimizer that takes temporaries for all tensors at once, have room too.
SHARE_OF_MEMORY, MOST_MEMORY = 0.4, 4 << 30


@dataclass(frozen=True)
class Choice:
    """Options of the command line; None means all."""

    device: str
    backends: Sequence[str] | None
    workloads: Sequence[str]
    variants: Collection[str] | None
    peers: Sequence[str]
    dtypes: Sequence[str]
    rounds: int
    seconds: float
    limit: float
    quick: bool


@dataclass(frozen=True, kw_only=True)
class SideBySide(Suite):
    """A suite with ``log2_sizes`` of one tensor, timed with ``sizes_effort``."""

    log2_sizes: Sequence[int]
    sizes_effort: Effort


class Run(suite.Run):
    """One comparison."""

    suite: SideBySide


def planned(choice: Choice) -> SideBySide:
    """Return the suite. A quick one differs only in lists, rounds and sizes."""
    device = torch.device(choice.device)
    cuda = device.type == "cuda"
    lists = workloads.tiny() if choice.quick else workloads.full(30 if cuda else 24)
    # on the CPU the call is the step: there is no time of the host beside it
    effort = partial(Effort, warm=3, steps=1000, host_steps=5 if cuda else 0, limit=choice.limit)

    def everyone(backends: Sequence[str], dtype: str) -> list[Candidate]:
        return [*lions(backends, dtype, choice.variants), *peers(dtype, device, choice.peers)]

    return SideBySide(
        device=device,
        families=tuple(lists[name] for name in choice.workloads),
        dtypes=tuple(choice.dtypes),
        everyone=everyone,
        peers=choice.peers,
        effort=effort(rounds=choice.rounds, seconds=choice.seconds),
        copy_bytes=1 << (20 if choice.quick else 31 if cuda else 27),
        memory=int(min(MOST_MEMORY, SHARE_OF_MEMORY * memory.available())),
        log2_sizes=range(10, 13 if choice.quick else 25, 2),
        sizes_effort=effort(rounds=min(choice.rounds, 3), seconds=min(choice.seconds, 0.1)),
    )


def check_everyone(run: Run, deadline: Deadline, findings: Findings) -> None:
    """Check each candidate's rule. A wrong peer is reported; a wrong candidate of lionbits is a failure."""
    del deadline
    everyone = [candidate for dtype in run.suite.dtypes for candidate in run.candidates(dtype)]
    for candidate in {(one.name, one.variant): one for one in everyone}.values():
        found = check(candidate, run.bench.clock, run.suite.effort.limit)
        run.results.checks.append(found)
        run.say(f"check: {found.name} {found.variant}: {found.found}")
        if candidate.ours and candidate.check and not found.right:
            findings.failed.append(f"{found.name} {found.variant}: {found.found}")


def go_through_sizes(run: Run, deadline: Deadline, findings: Findings) -> None:
    """Time the main candidates on one tensor, from a thousand elements on."""
    for dtype in run.suite.dtypes:
        main = [candidate for candidate in run.candidates(dtype) if candidate.main]
        for log2 in run.suite.log2_sizes if main else ():
            round_ = Round((workloads.one_tensor(log2),), main)
            run.results.copies += time_round(round_, run.bench, run.suite.sizes_effort, 1, deadline, run.results.sizes)
            run.save()


def draw(run: Run, deadline: Deadline, findings: Findings) -> None:
    """Draw the charts."""
    del deadline, findings
    for path in charts.draw(run.results, run.out):
        run.say(str(path))


@contextmanager
def compiling_anew() -> Iterator[None]:
    """Use an empty cache of kernels, so that compilation takes as long as for a new user."""
    import torch._dynamo

    before = os.environ.get(CACHE)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        torch._dynamo.config.patch(RECOMPILING),
    ):
        os.environ[CACHE] = folder
        try:
            yield
        finally:
            del os.environ[CACHE]
            if before is not None:
                os.environ[CACHE] = before


PARTS: Parts[Run] = {
    "environment": (1, look),
    "check": (1, check_everyone),
    "speed": (1, race),
    "sizes": (1, go_through_sizes),
    "charts": (1, draw),
}


def run(choice: Choice, out: Path) -> int:
    """Carry out all parts, without a time limit."""
    results = Results(choice.quick, choice.device, None, [], {name: Part() for name in PARTS}, suite="run")
    going = Run(planned(choice), choice.backends, out.resolve(), results)
    with compiling_anew():
        code = suite.carry_out(PARTS, going, Deadline(math.inf))
    report.show(results)
    print(f"\n{out / 'results.md'}, {out / 'results.json'}", flush=True)
    return code
