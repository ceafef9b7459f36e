"""These tests run kernels in Triton's interpreter, which has to be chosen before anything imports Triton."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("the tests of lionbits-triton want TRITON_INTERPRET=1, as `nox -s tests` sets it")
