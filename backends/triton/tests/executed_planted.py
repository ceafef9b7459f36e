"""What the executed program finds of the faults in ``planted``, with the line of the source for what breaks a rule."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

import lionbits_reference as reference
import lionbits_triton
import ptx_on_cpu
from lionbits_conformance.fault_injection import with_fault

from .cases import equal, stepped
from .planted import FAULTS


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_the_executed_program(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    make = partial(fault.make, fault.plan)
    with with_fault(lionbits_triton, [fault.edit], tmp_path) as wrong:
        if fault.executed in ("right", "wrong"):
            right = equal(stepped(wrong, fault.plan, make), stepped(reference, fault.plan, make))
            assert right is (fault.executed == "right")
            return
        with pytest.raises(getattr(ptx_on_cpu, fault.executed)) as caught:
            stepped(wrong, fault.plan, make)
        if isinstance(caught.value, ptx_on_cpu.Fault):
            assert caught.value.place.source.split(":")[0] in ("access.py", "kernels.py", "tiles.py", "lion.py")
