"""Kernels run in Triton's interpreter, or compiled under ``executed``: chosen before anything imports Triton."""

import importlib.util
import os

import pytest

if importlib.util.find_spec("triton") is None:  # there is none for this system
    collect_ignore_glob = ["test_*.py", "executed/*"]
elif os.environ.get("LIONBITS_TRITON_EMULATE"):
    collect_ignore_glob = ["test_*.py"]
elif os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob = ["executed/*"]
else:
    raise pytest.UsageError("the tests of lionbits-triton want TRITON_INTERPRET=1, as `nox -s tests` sets it")
