"""These tests run kernels on the CPU, by cuda-on-cpu, which a C++ compiler builds from the sources of the kernels."""

import os

import pytest

if os.environ.get("LIONBITS_CUPY_EMULATE") != "1":
    raise pytest.UsageError("the tests of lionbits-cupy want LIONBITS_CUPY_EMULATE=1, as `nox -s tests` sets it")
