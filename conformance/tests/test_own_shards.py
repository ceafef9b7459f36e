"""Faults in how ranks share the blocks of a row are rejected by tests of sharding, each by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

import lionbits
from lionbits_conformance import own_tests
from lionbits_conformance.patched_import import Edit

TESTS = Path(__file__).parents[2] / "packages/lionbits/tests"
ROWS = [TESTS / "distributed/test_shards_rows.py"]
STATE_DICTS = [TESTS / "test_short_rows.py"]
EXCHANGE = [
    TESTS / "distributed/test_shards_exchange.py::test_every_way_to_be_sharded_exchanges_with_every_other[4-fsdp 3]"
]

SHARED, CARRIED = "lionbits/step/shared_blocks.py", "lionbits/sharding/carried.py"
LOCAL, SLOTS = "lionbits/sharding/local.py", "lionbits/sharding/slots.py"
WHOLE, EXPORTED = "lionbits/sharding/whole.py", "lionbits/state/exported.py"

FAULTS: dict[str, tuple[Edit, list[Path]]] = {
    "ranks do not agree": (
        Edit(
            SHARED,
            "sharding.total(bits.bitwise_and_(0x7FFFFFFF), self._shard_group, largest=True)",
            "bits.bitwise_and_(0x7FFFFFFF)",
        ),
        ROWS,
    ),
    "maxima are added up": (Edit(SHARED, "self._shard_group, largest=True)", "self._shard_group)"), ROWS),
    "each rank knows the scales of its own blocks": (
        Edit(
            SHARED, "scales = torch.maximum(scales, formats", "scales = self._is_whole * torch.maximum(scales, formats"
        ),
        ROWS,
    ),
    "half of the largest momentum": (
        Edit(SHARED, "largest[part.blocks] = self._backend", "largest[part.blocks] = 0.5 * self._backend"),
        ROWS,
    ),
    "a divided block at the end is taken for a whole one": (
        Edit(SHARED, "last if last == size else max(last - last % block, after_head)", "last"),
        ROWS,
    ),
    "a divided block at the beginning is taken for a whole one": (
        Edit(SHARED, "after_head = min(-(-first // block) * block, last)", "after_head = first"),
        ROWS,
    ),
    "noise counts from the beginning of the run": (
        Edit(SHARED, "slot.index, slot.start + first)", "slot.index, slot.start)"),
        ROWS,
    ),
    "a run of 2 bits begins at any even element": (
        Edit(SLOTS, "found.start % 2 if run is None else lead(plan.format, run)", "found.start % 2"),
        ROWS,
    ),
    "momentum is decoded as if a block began with the run": (
        Edit(WHOLE, "before = run.first % format.block_size", "before = 0"),
        ROWS,
    ),
    "blocks are cut by columns anywhere": (
        Edit(LOCAL, "columns // parts % format.block_size == 0", "columns // parts > 0"),
        [TESTS / "distributed/test_shards_kinds.py"],
    ),
    "codes of a state dict begin with a neighbour's": (
        Edit(CARRIED, "count)[:, lead(format, run) :]", "count)[:, : math.prod(shape)]"),
        EXCHANGE,
    ),
    "loaded codes are packed from the first element": (
        Edit(CARRIED, "(lead(format, run_of(param)), 0)", "(0, lead(format, run_of(param)))"),
        EXCHANGE,
    ),
    "scales are cut as the parameter is": (
        Edit(CARRIED, "return {SCALE} if format", "return set() if format"),
        EXCHANGE,
    ),
    "codes loaded in place are lost": (
        Edit(EXPORTED, "held.copy_(sharding.packed_codes(format, param, exported))", "held.add_(0)"),
        STATE_DICTS,
    ),
    "codes are written back at every step": (
        Edit(EXPORTED, "exported))\n        self.forget()\n", "exported))\n"),
        STATE_DICTS,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_tests_of_sharding_reject(fault: str, tmp_path: Path) -> None:
    """By the results of steps, or of an exchange of state."""
    edit, tests = FAULTS[fault]
    assert own_tests.rejected_by(lionbits, [edit], tests, tmp_path) is not None
