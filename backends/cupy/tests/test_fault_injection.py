"""The conformance suite, on emulated kernels, rejects each CUDA C++ kernel with a fault in it."""

from __future__ import annotations

from pathlib import Path

import pytest

import lionbits_cupy
from lionbits_conformance import mutation_testing
from lionbits_conformance.fault_injection import with_fault
from lionbits_conformance.patched_import import Edit

LION, TILES, ACCESS, KERNELS = "cuda/lion.cuh", "cuda/tiles.cuh", "cuda/access.cuh", "cuda/kernels.cu"

FAULTS = {
    "no barrier before the warps' largest are read": Edit(TILES, "        __syncthreads();\n        for", "        for"),
    "no barrier before the next tile's are written": Edit(TILES, "        __syncthreads();  // before", "        // before"),
    "the loop of shuffles is cut short": Edit(TILES, "offset < WARP && offset < threads", "offset < WARP / 2 && offset < threads"),
    "the loop of shuffles goes too far": Edit(TILES, "offset < WARP && offset < threads", "offset < WARP"),
    "the sum over a warp is cut short": Edit(TILES, "offset > 0; offset /= 2) value +=", "offset > 1; offset /= 2) value +="),
    "largest by comparison, which NaN escapes": Edit(
        KERNELS, "largest = max(largest, magnitude(m[j]));\n    }\n    if (tile.count", "if (fabsf(m[j]) > float_of(largest)) largest = magnitude(m[j]);\n    }\n    if (tile.count",
    ),
    "tails are an element too long": Edit(TILES, "const int64 left = slot.columns - column;", "const int64 left = slot.columns - column + 1;"),
    "tails are taken for whole tiles": Edit(TILES, "left < SPAN ? int(left) : SPAN", "SPAN"),
    "idle threads of an even tile count": Edit(KERNELS, "    if (tile.count == 0) largest = 0;\n", ""),
    "nibbles are swapped": Edit(ACCESS, "__funnelshift_l(k[i * PER_WORD + j],", "__funnelshift_l(k[i * PER_WORD + (j ^ 1)],"),
    "a zero keeps its sign": Edit(ACCESS, "(SIGNS & signs & (magnitudes + REST))", "(SIGNS & signs)"),
    "rows are packed without a gap": Edit(TILES, "(slot.columns * PLAN.bits + 7 >> 3)", "(slot.columns * PLAN.bits >> 3)"),
    "every thread of a block writes the scale": Edit(ACCESS, "tile.count > 0 && tile.column % PLAN.block == 0", "tile.column % PLAN.block == 0"),
    "a slice counts from zero": Edit(ACCESS, "(slot.start + tile.row * slot.pitch", "(tile.row * slot.pitch"),
    "no carry into the high half of a position": Edit(ACCESS, "low + i < low ? carried : mixed", "mixed"),
    "both of a pair get one half of the hash": Edit(LION, "(((h >> 16 << dither.up) + dither.phase)", "(((h << dither.up) + dither.phase)"),
    "stochastic noise keeps the phase": Edit(LION, "0x9E3779B9), up, 0,", "0x9E3779B9), up, step * 40503 << up,"),
    "codes are not held at the largest": Edit(LION, "min(t + noise, most)", "(t + noise)"),
    "a zero moves as a negative number does": Edit(LION, "__fsub_rn(positive(x), positive(-x))", "(x > 0 ? 1.0f : -1.0f)"),
    "momentum is scaled for more than it can hold": Edit(LION, "absmax > HUGEST ? HUGEST : absmax", "absmax"),
    "infinity passes for a number": Edit(KERNELS, "if (PLAN.skip && largest >= INFINITE)", "if (PLAN.skip && largest > INFINITE)"),
    "strides of the gradient are the parameter's": Edit(ACCESS, "grad_strides(slot)), tile.count", "param_strides(slot)), tile.count"),
    "only the first tile of an item": Edit(KERNELS, "first < item.last; first += tile_blocks())\n        skips", "first == item.first; ++first)\n        skips"),
    "only the first item of a thread group": Edit(KERNELS, "    if (PLAN.skip) {\n        skips = warp_sum", "    if (here.mine > 0) return;\n    if (PLAN.skip) {\n        skips = warp_sum"),
    "a float16 rounds half up": Edit(LION, "(bits + 0xFFF + (bits >> 13 & 1)", "(bits + 0x1000"),
    "a bfloat16 rounds half up": Edit(LION, "(bits + 0x7FFF + (bits >> 16 & 1)) >> 16", "(bits + 0x8000) >> 16"),
}  # fmt: skip


def test_every_fault_is_one() -> None:
    """What is replaced stands in the kernels; a change of them may not leave a fault behind unseen."""
    for edit in FAULTS.values():
        edit.applied(Path(lionbits_cupy.__path__[0], edit.file).read_text())


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_kernel_is_rejected(tmp_path: Path, fault: str) -> None:
    """A property of calls finds it, within a few examples of each stratum of plans."""
    with with_fault(lionbits_cupy, [FAULTS[fault]], tmp_path) as wrong:
        wrong.emulate.module()  # it does compile
        assert mutation_testing.try_backend(fault, wrong, patience=60).rejected_by is not None


@pytest.mark.slow(smoke=False)
def test_nothing_is_rejected_for_being_a_copy(tmp_path: Path) -> None:
    """It is the edit that faulty kernels are rejected for."""
    with with_fault(lionbits_cupy, [], tmp_path) as copy:
        assert mutation_testing.try_backend("a copy", copy, patience=4).rejected_by is None
