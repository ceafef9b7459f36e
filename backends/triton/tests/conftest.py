"""These tests run kernels in Triton's interpreter, which has to be chosen before anything imports Triton."""

import importlib.util
import os

import pytest

if importlib.util.find_spec("triton") is None:  # there is none for this system
    collect_ignore_glob = ["test_*.py"]
elif os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("the tests of lionbits-triton want TRITON_INTERPRET=1, as `nox -s tests` sets it")
