"""What Triton makes of the kernels for GPUs of AMD's: subnormal numbers are kept, and nothing is contracted.

They are compiled and looked at, here, and have never run.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .test_backend import COMPILING

pytest.importorskip("triton.backends.amd.compiler", reason="this Triton is built without AMD's compiler")

#: Fused operations of an exact division: two steps of Newton's method, and the remainder.
FUSED_IN_A_DIVISION = 5

CODE = """
import json, re, sys, torch
from lionbits_reference.spec import Format, Plan
from lionbits_triton import compiled, launch
from lionbits_triton.kernels import step_kernel
arch = sys.argv[1]
launch.EXACT["enable_fp_fusion"] = sys.argv[2] == "fused"
plans = [Plan(torch.float32, torch.float32, Format.of(8)),
         Plan(torch.bfloat16, torch.bfloat16, Format.of(4), "mask", "dithered"),
         Plan(torch.float16, torch.float32, Format.of(32))]
words, numbers = torch.empty(1, dtype=torch.int64), torch.empty(1)
scalars = (*[numbers] * 3, words, numbers, words, 0.9, 0.1, 0.99, 0.01, 1, 1, 0, 0)
for plan in plans:
    cut = launch.cut(plan, [])
    made = launch.compile(step_kernel, (*[words] * 3, *scalars), cut, arch, EVEN=cut.even, UNEVEN=cut.uneven)
    text = made.asm["amdgcn"]
    # a product of a widened float16 is one with -0 added, which is no sum
    text = re.sub(r"v_fma_mix_f32 .*, neg\\(0\\).*", "", text)
    fused = re.findall(r"\\bv_(?:pk_|dual_)?(?:fma|mad|mac)\\w*_f(?:16|32)", text)
    print(json.dumps({
        "divisions": text.count("v_div_fixup_f32"),
        "fused": len(fused),
        "flushed": not re.search(r"amdhsa_float_denorm_mode_32 3", text),
    }))
"""


def compiled(arch: str, how: str) -> list[dict[str, int]]:
    """What is counted in the step kernel of three plans."""
    command = [sys.executable, "-c", CODE, arch, how]
    done = subprocess.run(command, env=COMPILING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "arch", ["gfx942", "gfx1100", *(pytest.param(each, marks=pytest.mark.slow) for each in ("gfx90a", "gfx950"))]
)
def test_kernels_are_exact(arch: str) -> None:
    for found in compiled(arch, "exact"):
        assert not found["flushed"]
        assert found["fused"] == FUSED_IN_A_DIVISION * found["divisions"]


def test_contraction_is_seen() -> None:
    """The count grows where the compiler may fuse."""
    assert any(found["fused"] > FUSED_IN_A_DIVISION * found["divisions"] for found in compiled("gfx942", "fused"))
