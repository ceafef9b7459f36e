"""Kernels and the guard have to be built for these tests; where nothing can be, they are skipped, with the reason."""

import pytest

import cuda_on_cpu
from cuda_on_cpu import device
from cuda_on_cpu.device import guard

if cuda_on_cpu.obstacle():
    collect_ignore_glob = ["test_shim_*.py"]  # which build kernels when they are imported
if not device.obstacle():
    guard.library()  # before the first backward of the process


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of the simulated device where there is none."""
    if reason := device.obstacle():
        for item in items:
            if item.path.name.startswith("test_device_"):
                item.add_marker(pytest.mark.skip(reason=reason))
