"""Tests of compiled kernels, ``executed_*.py``, in a process of their own: here Triton's interpreter is chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ptx_on_cpu", reason="it executes the kernels")

FILES = sorted(Path(__file__).parent.glob("executed_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_compiled_kernels(file: Path, request: pytest.FixtureRequest) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"LIONBITS_TRITON_EMULATE": "90", "OMP_NUM_THREADS": "1"}
    smoke = ["--smoke"] if request.config.getoption("--smoke") else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *smoke, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
