"""Configuration of all tests: slow tests, of which `--smoke` runs some cases."""

from collections import Counter

import pytest

#: Of the cases of a slow test, ``--smoke`` runs every so many, the first among them.
STRIDE = 12


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--smoke", action="store_true", help=f"of tests marked `slow`, run every {STRIDE}th case only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what `--smoke` leaves out."""
    if not config.getoption("--smoke"):
        return
    seen: Counter[str] = Counter()
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        test = item.nodeid.partition("[")[0]
        is_slow = item.get_closest_marker("slow") is not None
        (left if is_slow and seen[test] % STRIDE else kept).append(item)
        seen[test] += 1
    config.hook.pytest_deselected(items=left)
    items[:] = kept
