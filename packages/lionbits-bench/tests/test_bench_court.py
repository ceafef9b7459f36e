"""What is read out of pytest's output, whole or cut, and when a court has failed."""

import time
from pathlib import Path

import pytest

from lionbits_bench import court
from lionbits_bench.results import Findings, Verdict
from lionbits_bench.timing import Deadline

WHOLE = """\
collecting ... collected 230 items / 218 deselected / 12 selected
test_calls.py::test_supports PASSED                                 [ 8%]
test_calls.py::test_call[x] FAILED                                  [16%]
FAILED test_calls.py::test_call[x] - AssertionError
===== short test summary info =====
FAILED test_calls.py::test_call[x] - AssertionError
===== 1 failed, 9 passed, 1 skipped, 218 deselected, 1 xfailed, 2 warnings in 61.02s (0:01:01) =====
"""
CUT = """\
created: 8/8 workers
8 workers [230 items]
[gw0] [  0%] PASSED ../test_calls.py::test_supports
[gw3] [  1%] FAILED ../test_calls.py::test_call[x]
[gw3] [  1%] SKIPPED ../test_calls.py::test_call[y]
[gw3] [  1%] PASSED ../test_calls.py::test_call[z]
"""


def read(text: str) -> Verdict:
    verdict = Verdict("reference", "cpu", "dev")
    court.read(text.splitlines(), verdict)
    return verdict


def test_pytests_own_counts_are_taken_where_it_counted() -> None:
    verdict = read(WHOLE)
    assert (verdict.collected, verdict.passed, verdict.failed, verdict.skipped) == (12, 10, 1, 1)


def test_single_tests_count_where_it_was_stopped() -> None:
    verdict = read(CUT)
    assert (verdict.collected, verdict.passed, verdict.failed, verdict.skipped) == (230, 2, 1, 1)


def test_the_tail_is_kept() -> None:
    verdict = read("\n".join(map(str, range(100))))
    assert verdict.tail == [str(n) for n in range(60, 100)]


@pytest.mark.parametrize(
    ("verdict", "stopped", "failed", "unfinished"),
    [
        (Verdict("x", "cpu", "ci", exit_code=0, finished=True, passed=3), False, 0, 0),
        (Verdict("x", "cpu", "ci", exit_code=1, finished=True, passed=3, failed=1), False, 1, 0),
        (Verdict("x", "cpu", "ci", exit_code=1, finished=True), False, 1, 0),
        (Verdict("x", "cpu", "ci", exit_code=5), False, 1, 0),
        (Verdict("x", "cpu", "ci", exit_code=2, passed=3), True, 0, 1),
        (Verdict("x", "cpu", "ci", exit_code=None, passed=3, failed=1), True, 1, 1),
    ],
)
def test_what_is_a_failure_and_what_was_not_reached(
    verdict: Verdict, stopped: bool, failed: int, unfinished: int
) -> None:
    findings = Findings()
    court.judge(verdict, findings, stopped=stopped)
    assert (len(findings.failed), len(findings.unfinished)) == (failed, unfinished)


def test_a_court_without_time_is_stopped_and_says_so(tmp_path: Path) -> None:
    verdict, findings = Verdict("reference", "cpu", "night"), Findings()
    begin = time.monotonic()
    court.hold(verdict, tmp_path, Deadline(6), (), findings)
    assert time.monotonic() - begin < 20
    assert not verdict.finished
    assert not findings.failed
    assert len(findings.unfinished) == 1
    assert (tmp_path / "court-reference.log").exists()


def test_a_backend_that_is_not_there_fails(tmp_path: Path) -> None:
    verdict, findings = Verdict("nonesuch", "cpu", "dev"), Findings()
    court.hold(verdict, tmp_path, Deadline(120), ("-k", "supports"), findings)
    assert verdict.exit_code == 1
    assert len(findings.failed) == 1
    assert any("nonesuch" in line for line in verdict.tail)
