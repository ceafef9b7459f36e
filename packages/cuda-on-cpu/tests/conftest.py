"""Kernels and the guard have to be built for these tests; where nothing can be, there are none."""

import cuda_on_cpu
from cuda_on_cpu import device
from cuda_on_cpu.device import guard

if cuda_on_cpu.obstacle():
    collect_ignore_glob = ["test_*.py"]
elif device.obstacle():
    collect_ignore_glob = ["test_device_*.py"]
else:
    guard.library()  # before the first backward of the process
