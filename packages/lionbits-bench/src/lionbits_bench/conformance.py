"""The conformance suite in a process of its own: a kernel that crashes the device must not end the measurements."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .results import Findings, SuiteResult
from .timing import Deadline

#: Lines of the output that the results keep; all of it is in a file beside them.
TAIL = 40

#: Seconds that pytest has to report its results after it was stopped; less if there is little time in all.
GRACE = 15.0

#: Processes at most; each has a context on the device.
PROCESSES = 8

_COLLECTED = re.compile(r"(?:^|\s)(?:collected (\d+) items?|\d+ workers? \[(\d+) items?\])")
_DESELECTED = re.compile(r"/ (\d+) deselected")
_SUMMARY = re.compile(r"^=*\s*((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s")
_TEST = re.compile(r"(?:^|\s)(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)(?:\s|$)")
_COUNTED = {
    "passed": "passed", "xfailed": "passed", "failed": "failed", "error": "failed", "errors": "failed",
    "xpassed": "failed", "skipped": "skipped",
    "PASSED": "passed", "XFAIL": "passed", "FAILED": "failed", "ERROR": "failed", "XPASS": "failed",
    "SKIPPED": "skipped",
}  # fmt: skip


def hold(outcome: SuiteResult, out: Path, deadline: Deadline, arguments: Sequence[str], findings: Findings) -> None:
    """Run the suite on a backend, and stop it when time is up; tests that ran until then count."""
    log = out / f"conformance suite-{outcome.backend}.log"
    begin = time.monotonic()
    outcome.exit_code, stopped = _run(_command(outcome, out, arguments), log, out, deadline)
    outcome.seconds = time.monotonic() - begin
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    read(lines, outcome)
    outcome.finished = not stopped and outcome.exit_code in (0, 1)
    report_problems(outcome, findings, stopped=stopped)


def report_problems(outcome: SuiteResult, findings: Findings, *, stopped: bool) -> None:
    """Report failed tests, and a conformance suite that ended without a result."""
    counts = f"{outcome.passed} passed, {outcome.failed} failed of {outcome.collected or 'unknown'}"
    if outcome.failed:
        findings.failed.append(f"{outcome.backend}: {counts}")
    if stopped:
        findings.unfinished.append(f"{outcome.backend}: stopped when time was up, {counts}")
    elif not outcome.finished or (outcome.exit_code == 1 and not outcome.failed):
        findings.failed.append(
            f"{outcome.backend}: the conformance suite ended with exit code {outcome.exit_code}, {counts}"
        )


def read(lines: Sequence[str], outcome: SuiteResult) -> None:
    """Fill in the counts: pytest's own, or those of single tests if it was stopped before it counted."""
    outcome.tail = list(lines[-TAIL:])
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for line in lines:
        if collected := _COLLECTED.search(line):
            deselected = _DESELECTED.search(line)
            outcome.collected = int(collected[1] or collected[2]) - int(deselected[1] if deselected else 0)
        elif line.startswith(("=", "_")) and "short test summary" in line:
            break
        elif test := _TEST.search(line):
            counts[_COUNTED[test[1]]] += 1
    summary = next((found[1] for line in reversed(lines) if (found := _SUMMARY.match(line))), None)
    if summary is not None:
        counts = dict.fromkeys(counts, 0)
        for entry in summary.split(", "):
            number, what = entry.split()
            if what in _COUNTED:
                counts[_COUNTED[what]] += int(number)
    outcome.passed, outcome.failed, outcome.skipped = counts["passed"], counts["failed"], counts["skipped"]


def _command(outcome: SuiteResult, out: Path, arguments: Sequence[str]) -> list[str]:
    settings = out / "conformance suite.ini"  # nothing of a pytest configuration that happens to lie around
    settings.write_text("[pytest]\n", encoding="utf-8")
    several = importlib.util.find_spec("xdist") is not None and (os.cpu_count() or 1) > 2
    return [
        *(sys.executable, "-m", "lionbits_conformance"),
        *("--backend", outcome.backend, "--device", outcome.device, "--profile", outcome.profile),
        *("-v", "--color=no", "--tb=short", "-p", "no:cacheprovider", "-c", str(settings)),
        *(("-n", str(min(os.cpu_count() or 1, PROCESSES))) if several else ()),
        *arguments,
    ]


def _run(command: Sequence[str], log: Path, out: Path, deadline: Deadline) -> tuple[int | None, bool]:
    """Return the exit code, None if the process had to be killed; and True if it was stopped."""
    grace = min(GRACE, deadline.left / 3)
    environment = os.environ | {"HYPOTHESIS_STORAGE_DIRECTORY": str(out / "hypothesis"), "COLUMNS": "100"}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            return process.wait(deadline.left - grace), False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest then prints what it has
        try:
            return process.wait(grace), True
        except subprocess.TimeoutExpired:
            return None, True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session: its workers, and nobody else's
            process.wait()
