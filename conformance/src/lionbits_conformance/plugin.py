"""The pytest plugin: ``pytest --pyargs lionbits_conformance --backend NAME [--device D] [--profile PROFILE]``.

From a checkout without installation: ``python -m lionbits_conformance --backend NAME``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from lionbits import select
from lionbits_reference.spec import Backend

from .domain import Domain

_MINUTES = {hypothesis.Phase.shrink, hypothesis.Phase.explain}

#: Examples per property. ``dev`` and ``smoke`` show a failure as drawn. ``smoke`` draws the same examples each time,
#: others new ones, which ``--hypothesis-seed`` repeats. ``nightly`` keeps what it finds in ``.hypothesis``.
PROFILES: dict[str, dict[str, Any]] = {
    "dev": {"max_examples": 25, "phases": set(hypothesis.Phase) - _MINUTES},
    "smoke": {"max_examples": 24, "derandomize": True, "database": None, "phases": set(hypothesis.Phase) - _MINUTES},
    "ci": {"max_examples": 200, "database": None, "print_blob": True},
    "nightly": {"max_examples": 5000, "print_blob": True},
}

_AT_FIRST = Path(__file__).parent / "suite" / "test_at_first.py"

#: Profiles that end with a table of what was drawn.
_TABLED = ("ci", "nightly")

_DOMAIN = pytest.StashKey[Domain]()
_GAPS = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options for the backend, the device and the number of examples."""
    group = parser.getgroup("lionbits conformance")
    group.addoption("--backend", default="reference", help="backend to check: x means the module lionbits_x")
    group.addoption("--device", default="cpu", help="torch device to check it on")
    group.addoption("--profile", default="dev", choices=PROFILES, help="how many examples of each property")
    group.addoption("--gaps", help="a file of known gaps: a test id, white space and the reason, per line")


def pytest_configure(config: pytest.Config) -> None:
    """Load the Hypothesis profile and the known gaps."""
    for name, settings in PROFILES.items():
        hypothesis.settings.register_profile(
            f"lionbits-{name}",
            deadline=None,
            suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much],
            **settings,
        )
    hypothesis.settings.load_profile(f"lionbits-{config.getoption('--profile')}")
    config.stash[_DOMAIN] = Domain()
    config.stash[_GAPS] = _read_gaps(config.getoption("--gaps"))


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Return a line about backend, device and profile."""
    name, device = config.getoption("--backend"), torch.device(config.getoption("--device"))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    reason = select.diagnose(name, device)
    return [
        f"lionbits conformance: backend {name} on {where}, torch {torch.__version__}, "
        f"profile {config.getoption('--profile')}" + (f"; it says: {reason}" if reason else ""),
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Expect the known gaps to fail; a gap that names no test is an error, one that passes is too (strict)."""
    gaps = config.stash[_GAPS].copy()
    for item in items:
        reason = gaps.pop(item.name, None)
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    if gaps:
        raise pytest.UsageError(f"--gaps names tests that are not there: {', '.join(sorted(gaps))}")


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop after the simplest calls if one failed: all others would fail as well, and take minutes."""
    last = nextitem is None or nextitem.path != item.path
    if item.path == _AT_FIRST and last and item.session.testsfailed:
        item.session.shouldfail = "the simplest calls fail, so nothing harder was tried"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a process of pytest-xdist: send what was drawn to the one that prints it."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["lionbits_domain"] = session.config.stash[_DOMAIN].packed()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add what a process of pytest-xdist has drawn."""
    packed = getattr(node, "workeroutput", {}).get("lionbits_domain")
    if packed is not None:
        node.config.stash[_DOMAIN].merge(packed)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print which part of the domain was drawn."""
    drawn = config.stash[_DOMAIN]
    if config.getoption("--profile") in _TABLED and drawn.calls:
        terminalreporter.section("what was drawn for calls of the backend")
        for line in drawn.table():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def domain(request: pytest.FixtureRequest) -> Domain:
    """What the run has drawn so far."""
    return request.config.stash[_DOMAIN]


@pytest.fixture(scope="session")
def backend_name(request: pytest.FixtureRequest) -> str:
    """Name of the backend under test."""
    return str(request.config.getoption("--backend"))


@pytest.fixture(scope="session")
def backend(backend_name: str) -> Backend:
    """The backend under test."""
    return select.load(backend_name)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device under test."""
    return torch.device(request.config.getoption("--device"))


def _read_gaps(file: str | None) -> dict[str, str]:
    if file is None:
        return {}
    gaps = {}
    for line in Path(file).read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        test, _, reason = line.strip().partition(" ")
        if not reason.strip():
            raise pytest.UsageError(f"{file}: the gap {test!r} has no reason; write one behind it")
        gaps[test] = reason.strip()
    return gaps
