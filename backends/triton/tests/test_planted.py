"""What Triton's interpreter finds of the faults in ``planted``; ``executed_planted.py`` has the other column."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

import lionbits_reference as reference
import lionbits_triton
from lionbits_conformance.fault_injection import with_fault

from .cases import equal, stepped
from .planted import FAULTS


@pytest.mark.parametrize("name", FAULTS)
def test_the_interpreter(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    make = partial(fault.make, fault.plan)
    with with_fault(lionbits_triton, [fault.edit], tmp_path) as wrong:
        right = equal(stepped(wrong, fault.plan, make), stepped(reference, fault.plan, make))
    assert right is not fault.interpreted
