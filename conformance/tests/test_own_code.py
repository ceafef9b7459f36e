"""Faults in the slot table and in launches are rejected by this repository's own tests, each by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

import lionbits
from lionbits_conformance import mutants, own_tests
from lionbits_conformance.mutants.launches import FACTORS, PREPARE, RUN
from lionbits_conformance.patched_import import Edit

ROOT = Path(__file__).parents[2]
TABLE_TESTS = [ROOT / "backends/table/tests" / name for name in ("test_detours.py", "test_table.py")]
LAUNCH_TESTS = [
    ROOT / "packages/lionbits/tests" / f"test_{name}.py"
    for name in ("launch_groups", "contract_amp", "contract_groups", "contract_step")
]
TABLE = "lionbits_table/table.py"
_COPY = "            bound[j] = detour.grad.copy_(bound[j])\n"

FAULTS = {
    "a gradient that needs a copy is copied at the first call only": Edit(
        TABLE, _COPY, "            bound[j] = detour.grad if self._addresses else detour.grad.copy_(bound[j])\n"
    ),
    "a gradient that needs a copy is copied once for each tensor": Edit(
        TABLE,
        _COPY,
        "            if getattr(self, 'copied', None) != bound[j].data_ptr():\n"
        "                detour.grad.copy_(bound[j])\n"
        "            self.copied, bound[j] = bound[j].data_ptr(), detour.grad\n",
    ),
    "a gradient that needs a copy is not copied": Edit(TABLE, _COPY, "            bound[j] = detour.grad\n"),
    "a slot that needs a copy is copied at the first call only": Edit(
        TABLE,
        "            _copy(detour.slot, detour.copy, self._plan)\n",
        "            self._addresses or _copy(detour.slot, detour.copy, self._plan)\n",
    ),
    "state is not written back": Edit(
        TABLE, "        tensor.copy_(source.state[key])\n", "        to is source or tensor.copy_(tensor)\n"
    ),
    "parameters are not written back": Edit(
        TABLE,
        "            _copy(detour.copy, detour.slot, self._plan)\n",
        "            _copy(detour.slot, detour.copy, self._plan)\n",
    ),
    "only the first gradient is looked at": Edit(
        TABLE, "addresses != self._addresses", "addresses[:1] != self._addresses[:1]"
    ),
    "every gradient is aligned": Edit(TABLE, "at % EVEN == 0", "at % 1 == 0"),
    "half aligned is aligned": Edit(TABLE, "at % EVEN == 0", "at % (EVEN // 2) == 0"),
    "a copy shares the parameter": Edit(
        TABLE, "for t in (slot.param, grad))", "for t in (slot.param, grad)); param = slot.param"
    ),
    "a copy starts at zero": Edit(
        TABLE, "slot.index, slot.start, slot.row_pitch), copied)", "slot.index, 0, slot.row_pitch), copied)"
    ),
    "negated gradients are walked": Edit(TABLE, "(slot.param, grad, *state))", "(slot.param, *state))"),
    "state in any order is walked": Edit(
        TABLE, "all(t.is_contiguous() for t in state)", "all(t.numel() for t in state)"
    ),
}
LAUNCHES = [
    mutant for mutant in mutants.LAUNCHES if mutant.edit.file in (FACTORS, RUN, PREPARE, "lionbits/step/scalars.py")
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_tests_of_the_table_reject(fault: str, tmp_path: Path) -> None:
    """Without a kernel: what the table says is enough."""
    package = pytest.importorskip("lionbits_table", reason="its faults are tried")
    assert own_tests.rejected_by(package, [FAULTS[fault]], TABLE_TESTS, tmp_path) is not None


@pytest.mark.slow
@pytest.mark.parametrize("mutant", LAUNCHES, ids=lambda mutant: mutant.name)
def test_tests_of_launches_reject(mutant: mutants.Mutant, tmp_path: Path) -> None:
    """Without the oracle."""
    assert own_tests.rejected_by(lionbits, [mutant.edit], LAUNCH_TESTS, tmp_path) is not None


@pytest.mark.slow(smoke=False)
@pytest.mark.parametrize("package", ["lionbits", "lionbits_table"])
def test_right_code_is_not_rejected(package: str, tmp_path: Path) -> None:
    """A copy without a fault passes."""
    tests = LAUNCH_TESTS if package == "lionbits" else TABLE_TESTS
    copied = pytest.importorskip(package, reason="its faults are tried")
    assert own_tests.rejected_by(copied, [], tests, tmp_path) is None
