"""What NVRTC makes of the kernels, for GPUs that need not be there: exact, wide accesses, no spills.

`nox -s kernels` looks at all plans and architectures, and prints a table of them.
"""

from __future__ import annotations

from itertools import islice

import pytest

from lionbits_bench import sass

pytest.importorskip("cupy", reason="it compiles the kernels")

#: Instructions per element that the fast path of bfloat16 with codes may have on sm_90: an H200 has time for 62 while
#: its memory delivers the bytes of 8 bits, and for 55 at 4.
BUDGET = 53


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "architecture"), [(32, 90), (4, 90), (2, 90), *((8, sm) for sm in (75, 80, 90, 100, 120))]
)
def test_every_kernel_keeps_the_law(bits: int, architecture: int) -> None:
    """No contraction, flushing or approximation in PTX; in SASS 16-byte accesses on the fast path and no stack."""
    for plan in sass.plans(bits, ("none",)):
        found = sass.listings("cupy", plan, architecture)
        assert set(found) == {"step_kernel", "count_kernel", "encode_kernel", "decode_kernel"}
        for name, each in found.items():
            assert sass.faults(each, fast=name == sass.STEP) == [], (name, plan)


def test_caution_keeps_it_too() -> None:
    """In bfloat16, with 8-bit codes."""
    for plan in islice(sass.plans(8, ("mask", "gradient")), 2):
        assert sass.faults(sass.listings("cupy", plan, 90)[sass.STEP]) == []


@pytest.mark.parametrize("bits", [8, 4])
def test_instructions_are_within_the_budget(bits: int) -> None:
    """Of the step that most people take."""
    plain = next(iter(sass.plans(bits)))
    assert 30 < sass.listings("cupy", plain, 90)[sass.STEP].per_element <= BUDGET
