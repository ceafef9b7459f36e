"""Kernels have to be built for these tests; where nothing can be, there are none."""

import cuda_on_cpu

if cuda_on_cpu.obstacle():
    collect_ignore_glob = ["test_*.py"]
