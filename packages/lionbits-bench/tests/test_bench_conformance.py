"""What is read out of pytest's output, whole or cut, and when a conformance suite has failed."""

import time
from pathlib import Path

import pytest

from lionbits_bench import conformance
from lionbits_bench.results import Findings, SuiteResult
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


def read(text: str) -> SuiteResult:
    outcome = SuiteResult("reference", "cpu", "dev")
    conformance.read(text.splitlines(), outcome)
    return outcome


def test_pytests_own_counts_are_taken_where_it_counted() -> None:
    outcome = read(WHOLE)
    assert (outcome.collected, outcome.passed, outcome.failed, outcome.skipped) == (12, 10, 1, 1)


def test_single_tests_count_where_it_was_stopped() -> None:
    outcome = read(CUT)
    assert (outcome.collected, outcome.passed, outcome.failed, outcome.skipped) == (230, 2, 1, 1)


def test_the_tail_is_kept() -> None:
    outcome = read("\n".join(map(str, range(100))))
    assert outcome.tail == [str(n) for n in range(60, 100)]


@pytest.mark.parametrize(
    ("outcome", "stopped", "failed", "unfinished"),
    [
        (SuiteResult("x", "cpu", "ci", exit_code=0, finished=True, passed=3), False, 0, 0),
        (SuiteResult("x", "cpu", "ci", exit_code=1, finished=True, passed=3, failed=1), False, 1, 0),
        (SuiteResult("x", "cpu", "ci", exit_code=1, finished=True), False, 1, 0),
        (SuiteResult("x", "cpu", "ci", exit_code=5), False, 1, 0),
        (SuiteResult("x", "cpu", "ci", exit_code=2, passed=3), True, 0, 1),
        (SuiteResult("x", "cpu", "ci", exit_code=None, passed=3, failed=1), True, 1, 1),
    ],
)
def test_what_is_a_failure_and_what_was_not_reached(
    outcome: SuiteResult, stopped: bool, failed: int, unfinished: int
) -> None:
    findings = Findings()
    conformance.report_problems(outcome, findings, stopped=stopped)
    assert (len(findings.failed), len(findings.unfinished)) == (failed, unfinished)


def test_a_suite_without_time_is_stopped_and_says_so(tmp_path: Path) -> None:
    outcome, findings = SuiteResult("reference", "cpu", "nightly"), Findings()
    begin = time.monotonic()
    conformance.hold(outcome, tmp_path, Deadline(6), (), findings)
    assert time.monotonic() - begin < 20
    assert not outcome.finished
    assert not findings.failed
    assert len(findings.unfinished) == 1
    assert (tmp_path / "conformance suite-reference.log").exists()


def test_a_backend_that_is_not_there_fails(tmp_path: Path) -> None:
    outcome, findings = SuiteResult("nonesuch", "cpu", "dev"), Findings()
    conformance.hold(outcome, tmp_path, Deadline(120), ("-k", "supports"), findings)
    assert outcome.exit_code == 1
    assert len(findings.failed) == 1
    assert any("nonesuch" in line for line in outcome.tail)
