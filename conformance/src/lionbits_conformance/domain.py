"""Which part of the domain a run of the suite has drawn, as a table."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lionbits_reference.spec import Plan, matrix_shape

from .cases import Case
from .placing import GRAD_LAYOUTS, LAYOUTS
from .strategies import common_plans, covering, every_plan
from .values import KINDS, PARAM_KINDS

#: Upper ends of classes of sizes.
_ROWS = (1, 5, 70, 8192, 65_535)
_ELEMENTS = (0, 64, 1024, 16_384, 262_144)
_TENSORS = (1, 4, 20, 40, 130)
_STEPS = (1, 3, 8, 12)


@dataclass
class Domain:
    """The plans of the calls that were drawn, and how many calls or tensors were in each class of everything else."""

    plans: set[Plan] = field(default_factory=set)
    common: int = 0
    calls: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, case: Case) -> None:
        """Count a call."""
        self.plans.add(case.plan)
        self.calls += 1
        self.common += case.plan in common_plans()
        self._count("tensors in a call", _class(len(case.tensors), _TENSORS))
        self._count("updates of one preparation", _class(case.updates, _STEPS))
        self._count("gradients of later updates", case.renewal if case.updates > 1 else "none")
        self._count(
            "gradient's dtype", "its own" if case.plan.grad_dtype != case.plan.param_dtype else "the parameter's"
        )
        for j, tensor in enumerate(case.tensors):
            rows, columns = matrix_shape(tensor.shape)
            self._count("rows", _class(rows, _ROWS))
            self._count("elements", _class(rows * columns, _ELEMENTS))
            self._count("dimensions", str(len(tensor.shape)))
            self._count("last block", _last_block(case.plan, columns))
            self._count("layout", tensor.layout)
            self._count("gradient's layout", tensor.grad_layout)
            self._count("gradient", tensor.kind)
            self._count("parameter", tensor.param_kind)
            self._count("rows of the parameter", "wider than the rectangle" if tensor.beyond else "as wide")
            self._count("position of the parameter", _class(case.index + 3 * j, (255, 65_535, 2**31 - 1)))

    def packed(self) -> dict[str, Any]:
        """What :meth:`merge` takes, as numbers, texts, lists and dicts."""
        every = _numbered()
        counts = [[*key, count] for key, count in self.counts.items()]
        return {"plans": [every[p] for p in self.plans], "common": self.common, "calls": self.calls, "counts": counts}

    def merge(self, packed: dict[str, Any]) -> None:
        """Add what another process has counted."""
        every = list(_numbered())
        self.plans |= {every[number] for number in packed["plans"]}
        self.common += packed["common"]
        self.calls += packed["calls"]
        for row, value, count in packed["counts"]:
            self.counts[row, value] += count

    def table(self) -> list[str]:
        """Lines: how much of what can be counted was met, then the share of each class."""
        pairs, triples = (self._met(size) for size in (2, 3))
        common, share = common_plans(), 100 * self.common // max(self.calls, 1)
        lines = [
            f"calls                        {self.calls}, {share} % under common plans",
            f"plans                        {len(self.plans)} of {len(_numbered())}",
            f"common plans                 {len(self.plans & set(common))} of {len(common)}",
            f"pairs of settings            {pairs} of {len(covering.possible(2))}",
            f"three settings               {triples} of {len(covering.possible(3))}",
        ]
        rows = dict.fromkeys(row for row, _ in self.counts)
        for row in rows:
            found = {value: count for (name, value), count in self.counts.items() if name == row}
            order = sorted(found, key=lambda value: (_place(row, value), value))
            missing = [value for value in _EXPECTED.get(row, ()) if value not in found]
            line = ", ".join(f"{value} ({found[value]})" for value in order)
            lines.append(f"{row:28} {line}" + (f"; never {', '.join(missing)}" if missing else ""))
        return lines

    def _met(self, size: int) -> int:
        met: set[Any] = set()
        return len(met.union(*(covering.combinations(plan, size) for plan in self.plans)))

    def _count(self, row: str, value: str) -> None:
        self.counts[row, value] += 1


#: What each row should have, so that what was not drawn is named.
_EXPECTED: dict[str, tuple[str, ...]] = {
    "layout": LAYOUTS,
    "gradient's layout": GRAD_LAYOUTS,
    "gradient": KINDS,
    "parameter": PARAM_KINDS,
}


@functools.cache
def _numbered() -> dict[Plan, int]:
    return {plan: number for number, plan in enumerate(every_plan())}


def _class(size: int, ends: tuple[int, ...]) -> str:
    """The class of a size: up to one of these, or above the last."""
    end = next((end for end in ends if size <= end), None)
    return f"over {ends[-1]:,}" if end is None else f"to {end:,}"


def _place(row: str, value: str) -> int:
    """Sizes in their order."""
    if value.startswith(("to ", "over ")):
        return int(value.split()[1].replace(",", "")) + value.startswith("over ")
    return 0


def _last_block(plan: Plan, columns: int) -> str:
    block = plan.format.block_size
    if not block:
        return "no blocks"
    short = columns % block
    return {0: "whole", 1: "1", block - 1: "one short of whole"}.get(short, "of another length")
