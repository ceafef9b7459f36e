"""What the compiler makes of the kernels, for GPUs that need not be there: exact, wide accesses, no spills.

`nox -s kernels` looks at all cautions for all bits and architectures, and prints a table of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from .test_backend import COMPILING

#: Instructions per element that the fast path of bfloat16 may have on sm_90, by bits of codes: an H200 has time for 62
#: while its memory delivers the bytes of 8 bits, and for 55 at 4.
BUDGETS = {"8": 50, "4": 50}


def listed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m lionbits_bench sass``."""
    command = [sys.executable, "-m", "lionbits_bench", "sass", *arguments]
    return subprocess.run(command, env=COMPILING, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["32", "8", "4", "2"])
@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_every_kernel_keeps_the_law(bits: str, arch: str) -> None:
    """No contraction, flushing or approximation in PTX; in SASS 16-byte accesses on the fast path and no stack."""
    cautions = ("none", "mask", "gradient") if (bits, arch) == ("8", "90") else ("none",)
    done = listed("--bits", bits, "--arch", arch, "--caution", *cautions)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(f"| {bits} |")]
    assert len(rows) == 8 * len(cautions)
    if arch == "90" and bits in BUDGETS:
        plain = next(row for row in rows if "bfloat16 / bfloat16 | none | nearest" in row)
        assert float(plain.split("|")[-2]) <= BUDGETS[bits]


def test_faults_are_found() -> None:
    """A kernel compiled with contraction, and a listing with each of the other faults, are reported."""
    code = (
        "import torch; from lionbits_triton import kernels, launch; from lionbits_reference.spec import *\n"
        "from lionbits_bench import sass\n"
        "plan = Plan(torch.bfloat16, torch.bfloat16, Format.of(8))\n"
        "good = sass.listings('triton', plan, 90)[sass.STEP]\n"
        "print(sass.faults(good))\n"
        "for bad in (good._replace(ptx='add.ftz.f32'), good._replace(ptx='div.full.f32'), good._replace(stack=8),\n"
        "            good._replace(ptx='rcp.approx.f32'), good._replace(fast_path=[])): print(sass.faults(bad))\n"
        "kernels.step_kernel.device_caches.clear()\n"
        "launch.EXACT['enable_fp_fusion'] = True\n"
        "print(sass.faults(sass.listings('triton', plan, 90)[sass.STEP]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=COMPILING, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert lines[0] == "[]", done.stderr
    for line, meaning in zip(
        lines[1:], ("flushes", "divides", "spills", "approximates", "16-byte", "contracts"), strict=True
    ):
        assert re.search(meaning, line), (line, meaning)


def test_the_interpreter_compiles_nothing() -> None:
    """The command says so instead of printing an empty table."""
    command = [sys.executable, "-m", "lionbits_bench", "sass"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "interpreter compiles nothing" in done.stderr
