"""Rounds: turns, failures that stay in their row, time that runs out, replays that differ."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from lionbits_bench import candidates, measure, replay, workloads
from lionbits_bench.candidates import Candidate
from lionbits_bench.measure import Bench, Effort, Round, time_round
from lionbits_bench.results import Findings, Row
from lionbits_bench.timing import CopyMeter, Deadline, HostClock, Launches, Work

EFFORT = Effort(rounds=2, warm=1, steps=3, host_steps=2, seconds=60.0)
MEMORY = 1  # a step of its own
WORKLOAD = workloads.uniform(3, (4, 8))


class Logged(torch.optim.SGD):
    """Notes who steps."""

    def __init__(self, parameters: list[Tensor], note: Callable[[], None]) -> None:
        super().__init__(parameters, lr=0.0)
        self._note = note

    def step(self, closure: Any = None) -> Any:
        self._note()
        return super().step(closure)


def candidate(name: str, note: Callable[[], None], *, ours: bool = True) -> Candidate:
    def build(parameters: list[Tensor]) -> Optimizer:
        return Logged(parameters, note)

    return Candidate(name, "plain", "fp32", 0.0, build, ours)


@pytest.fixture
def bench() -> Bench:
    clock = HostClock()
    return Bench(clock, CopyMeter(clock, 1 << 12), lambda text: None)


def run(bench: Bench, candidates: list[Candidate], seconds: float = 60.0, share: float = 1.0) -> list[Row]:
    rows: list[Row] = []
    time_round(Round((WORKLOAD,), candidates), bench, EFFORT, share, Deadline(seconds), rows)
    return rows


def test_contestants_take_turns(bench: Bench) -> None:
    stepped: list[str] = []
    names = ["a", "b", "c"]
    rows = run(bench, [candidate(name, lambda name=name: stepped.append(name)) for name in names])
    turns = [name for i, name in enumerate(stepped) if i == 0 or stepped[i - 1] != name]
    assert turns == names * 2
    each = 1 + EFFORT.warm + EFFORT.host_steps + EFFORT.steps + MEMORY
    assert len(stepped) == len(names) * 2 * each
    for row in rows:
        assert not row.problem
        assert len(row.seconds) == 2 * EFFORT.steps
        assert len(row.host_seconds) == 2 * EFFORT.host_steps
        assert row.floor_bytes == 3 * 4 * WORKLOAD.elements
        assert row.copy_bandwidth is not None
        # a quotient of float64 formed twice: the last bit may differ
        assert row.of_copy == pytest.approx(row.floor_bytes / row.step_seconds / row.copy_bandwidth)
        assert (row.peak_bytes, row.kernels, row.waits) == (None, None, None)


def test_copies_are_measured_before_between_and_after(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(bench.meter, "bandwidth", lambda: events.append("copy") or float(len(events)))
    names = ["a", "b"]
    rows = run(bench, [candidate(name, lambda name=name: events.append(name)) for name in names])
    turns = [name for i, name in enumerate(events) if i == 0 or events[i - 1] != name]
    assert turns == ["copy", "a", "copy", "b"] * 2 + ["copy"]
    at = [i + 1 for i, event in enumerate(events) if event == "copy"]
    assert [row.copy_bandwidth for row in rows] == [at[2], at[2]]


def test_who_fails_fails_alone_and_is_not_asked_again(bench: Bench) -> None:
    calls: list[int] = []

    def fall() -> None:
        calls.append(1)
        raise RuntimeError("fell over\nand so on")

    def fail_to_build(parameters: list[Tensor]) -> Optimizer:
        raise TypeError("not like this")

    unbuilt = replace(candidate("c", lambda: None), build=fail_to_build)
    rows = run(bench, [candidate("a", fall), candidate("b", lambda: None), unbuilt, candidate("d", fall, ours=False)])
    assert [row.problem for row in rows] == [
        "RuntimeError: fell over",
        "",
        "TypeError: not like this",
        "RuntimeError: fell over",
    ]
    assert len(calls) == 2
    assert len(rows[1].seconds) == 2 * EFFORT.steps
    findings = Findings()
    measure.report_problems(rows, findings)
    assert findings.failed == [f"{r.title} on {WORKLOAD.name}: {r.problem}" for r in (rows[0], rows[2])]
    assert not findings.unfinished


def test_time_that_is_up_leaves_rows_that_say_so(bench: Bench) -> None:
    rows = run(bench, [candidate("a", lambda: None)], seconds=0.0)
    assert [row.problem for row in rows] == [measure.NOT_REACHED]
    findings = Findings()
    measure.report_problems(rows, findings)
    assert (findings.failed, findings.unfinished) == (
        [],
        [f"{WORKLOAD.name}, fp32: 1 not measured"],
    )


def test_the_first_round_may_take_longer_than_the_share(bench: Bench) -> None:
    rows = run(bench, [candidate("a", lambda: None), candidate("b", lambda: None)], share=0.0)
    assert [len(row.seconds) for row in rows] == [EFFORT.steps] * 2


def test_one_that_takes_too_long_is_stopped_and_reported(bench: Bench) -> None:
    def sleep() -> None:
        time.sleep(20)

    begin = time.monotonic()
    rows: list[Row] = []
    them = [candidate("a", sleep), candidate("b", lambda: None)]
    effort = replace(EFFORT, limit=0.2, rounds=1)
    time_round(Round((WORKLOAD,), them), bench, effort, 1, Deadline(60), rows)
    assert [row.problem for row in rows] == ["stopped after 0.2 s", ""]
    assert time.monotonic() - begin < 10
    time.sleep(0.3)  # the alarm of the second does not ring later


def test_the_time_of_the_host_is_measured_where_asked(bench: Bench) -> None:
    rows: list[Row] = []
    effort = replace(EFFORT, host_steps=0)
    time_round(Round((WORKLOAD,), [candidate("a", lambda: None)]), bench, effort, 1, Deadline(60), rows)
    assert (rows[0].problem, rows[0].host_seconds, len(rows[0].seconds)) == ("", [], 2 * EFFORT.steps)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells")
def test_memory_of_a_step_is_seen(bench: Bench) -> None:
    size = 64 << 20

    def take() -> None:
        torch.ones(size, dtype=torch.uint8)

    small, large = run(bench, [candidate("a", lambda: None), candidate("b", take)])
    assert small.temporary_bytes is not None
    assert large.temporary_bytes is not None
    assert small.temporary_bytes < size / 4
    assert 0.9 * size < large.temporary_bytes < 1.3 * size


class Sticking(HostClock):
    """Records one step less than it should."""

    def capture(self, work: Work, warm: int) -> Work:
        return super().capture(work, warm - 1)


@pytest.mark.parametrize("lion", candidates.lions(["reference"], "bf16"), ids=lambda lion: lion.variant)
def test_replays_are_compared_bit_for_bit(lion: Candidate) -> None:
    workload = workloads.uniform(2, (64, 64))
    findings = Findings()
    same = replay.try_replay(lion, workload, HostClock(), findings)
    assert same.equal
    assert len(same.seconds) == replay.TIMED
    assert not findings.failed
    other = replay.try_replay(lion, workload, Sticking(), findings)
    assert not other.equal
    assert other.difference
    assert len(findings.failed) == 1


def test_a_difference_only_in_state_is_seen() -> None:
    build = candidates.lions(["reference"], "fp32")[1].build
    one, other = (build(workloads.tensors(WORKLOAD, torch.float32, torch.device("cpu"))) for _ in range(2))
    for optimizer in (one, other):
        optimizer.step()
    assert replay.difference(one, other) == ""
    changed = other.param_groups[0]["params"][1]
    other.state[changed]["exp_avg"].view(-1)[7] *= -1
    assert replay.difference(one, other) == "exp_avg of tensor 1 in 1 of 128 bytes"


class Profiling(HostClock):
    """Knows of launches."""

    def launches(self, work: Work) -> Launches | None:
        work()
        return Launches(2, 1)

    def waits(self, work: Work) -> int | None:
        work()
        return 3


def test_launches_go_into_the_rows_that_were_timed(bench: Bench) -> None:
    falls = {"b", "c"}
    bench.clock = Profiling()
    stepped: dict[str, int] = dict.fromkeys("abc", 0)

    def note(name: str) -> None:
        stepped[name] += 1
        if name in falls and stepped[name] > timed:
            raise RuntimeError("no right to profile")

    timed = 2 * (1 + EFFORT.warm + EFFORT.host_steps + EFFORT.steps + MEMORY)
    them = [candidate(name, lambda name=name: note(name), ours=name != "c") for name in stepped]
    rows, findings = run(bench, them), Findings()
    measure.count_round(Round((WORKLOAD,), them), bench, Deadline(60), rows, findings)
    assert [(row.kernels, row.transfers, row.waits) for row in rows] == [(2, 1, 3), (None,) * 3, (None,) * 3]
    assert [row.problem for row in rows] == [""] * 3
    where = f"plain, fp32 on {WORKLOAD.name}: RuntimeError: no right to profile"
    assert (findings.failed, findings.unfinished) == ([f"b {where}"], [f"c {where}"])
    measure.count_round(Round((WORKLOAD,), them), bench, Deadline(0), rows, late := Findings())
    assert late.unfinished == [f"{WORKLOAD.name}, fp32: 3 not measured"]
