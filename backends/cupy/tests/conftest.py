"""These tests run kernels on the CPU, by cuda-on-cpu; where nothing can be built, only those of the build are left."""

import os

import pytest

import cuda_on_cpu

if os.environ.get("LIONBITS_CUPY_EMULATE") != "1":
    raise pytest.UsageError("the tests of lionbits-cupy want LIONBITS_CUPY_EMULATE=1, as `nox -s tests` sets it")
if cuda_on_cpu.obstacle():
    collect_ignore = ["test_backend.py", "test_optim.py", "test_fault_injection.py"]
