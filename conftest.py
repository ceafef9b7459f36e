"""Configuration of all tests: slow tests, of which `--smoke` runs some cases, or none."""

from collections import Counter

import pytest

#: Of the cases of a slow test, ``--smoke`` runs every so many, the first among them; none of ``slow(smoke=False)``.
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
        slow = item.get_closest_marker("slow")
        is_left = slow is not None and (seen[test] % STRIDE or not slow.kwargs.get("smoke", True))
        (left if is_left else kept).append(item)
        seen[test] += 1
    config.hook.pytest_deselected(items=left)
    items[:] = kept
