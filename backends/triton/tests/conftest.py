"""These tests run kernels in Triton's interpreter, or compiled, which is chosen before anything imports Triton."""

import importlib.util
import os

import pytest

if importlib.util.find_spec("triton") is None:  # there is none for this system
    collect_ignore_glob = ["*.py"]
elif os.environ.get("TRITON_INTERPRET") != "1" and not os.environ.get("LIONBITS_TRITON_EMULATE"):
    raise pytest.UsageError("the tests of lionbits-triton want TRITON_INTERPRET=1, as `nox -s tests` sets it")
