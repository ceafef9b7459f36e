"""The conformance suite, in Triton's interpreter, rejects each kernel with a fault in it.

The wrong Lions of ``lionbits_conformance.mutants`` are made of the reference; these faults only kernels can have.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import lionbits_triton
from lionbits_conformance import checks, mutation_testing
from lionbits_conformance.fault_injection import with_fault
from lionbits_conformance.patched_import import Edit
from lionbits_conformance.values import KINDS

#: Small tiles, and many of them for a program, as on a GPU: those of the interpreter would hide faults between tiles.
MANY_TILES = [
    Edit("launch.py", "INTERPRETED_TILE = 1 << 16", "INTERPRETED_TILE = 1 << 9"),
    Edit("launch.py", "TILES_PER_ITEM, ENOUGH_PROGRAMS = 32, 8192", "TILES_PER_ITEM, ENOUGH_PROGRAMS = 4, 1"),
]

FAULTS = {
    "tails are an element too long": [
        Edit("tiles.py", "slot.columns - begin, VARIANT.block)", "slot.columns - begin + 1, VARIANT.block)"),
    ],
    "nibbles are swapped": [
        Edit("tiles.py", "signed << shifts(BITS, VARIANT.word)", "signed << (shifts(BITS, VARIANT.word) ^ (BITS & 4))"),
    ],
    "a zero keeps its sign": [
        Edit("tiles.py", "return (words & (positive | MAGNITUDES))", "return words"),
    ],
    "rows are packed without a gap": [
        Edit("tiles.py", "((slot.columns * VARIANT.format.bits + 7) // 8)", "(slot.columns * VARIANT.format.bits // 8)"),
    ],
    "a slice counts from zero": [
        Edit("dither.py", "(slot.start + tile.row", "(slot.start * 0 + tile.row"),
    ],
    "no carry into the high half of a position": [
        Edit("dither.py", "+ carried.to(tl.uint32)", "+ 0"),
    ],
    "both of a pair get one half of the hash": [
        Edit("dither.py", "(((h >> 16) + dither.phase)", "((h + dither.phase)"),
    ],
    "momentum is scaled for more than it can hold": [
        Edit("lion.py", "tl.where(absmax > _HUGE, _HUGE, absmax)", "absmax"),
    ],
    "infinity passes for a number": [
        Edit("kernels.py", "if tl.max(largest, 0) >= INFINITE:", "if tl.max(largest, 0) > INFINITE:"),
    ],
    "strides of the gradient are the parameter's": [
        Edit(
            "tiles.py",
            "s.grad_row, s.grad_outer, s.grad_middle, s.grad_inner",
            "s.param_row, s.param_outer, s.param_middle, s.param_inner",
        ),
    ],
    "only the first tile of an item": [
        *MANY_TILES,
        Edit("kernels.py", "first += VARIANT.rows\n    return skips", "first = item.last\n    return skips"),
    ],
}  # fmt: skip


def test_every_fault_is_one() -> None:
    """What is replaced stands in the kernels; a change of them may not leave a fault behind unseen."""
    for edits in FAULTS.values():
        for edit in edits:
            edit.applied(Path(lionbits_triton.__path__[0], edit.file).read_text())


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_kernel_is_rejected(tmp_path: Path, fault: str) -> None:
    """A property of calls finds it, within a few examples of each stratum of plans."""
    with with_fault(lionbits_triton, FAULTS[fault], tmp_path) as wrong:
        assert mutation_testing.try_backend(fault, wrong).rejected_by is not None


@pytest.mark.slow(smoke=False)
def test_nothing_is_rejected_for_being_a_copy(tmp_path: Path) -> None:
    """Many small tiles are no fault. All 2^16 gradients of 16 bits would take the interpreter minutes in such tiles."""
    with with_fault(lionbits_triton, MANY_TILES, tmp_path) as copy:
        found = [check for check in checks.of_calls(copy, KINDS) if check.name != "every_gradient"]
        assert mutation_testing.try_checks("a copy", found, patience=1).rejected_by is None
