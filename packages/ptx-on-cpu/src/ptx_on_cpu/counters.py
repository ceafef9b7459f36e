"""Counts of what a launch did: instructions, requests, sectors, bank conflicts, divergence."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from .batch import WARP, Batch, Threads
from .faults import Place
from .parse import Instruction
from .types import Array

#: Bytes that a request moves at once, and bytes of a word of a bank.
SECTOR, WORD = 32, 4


@dataclass
class Traffic:
    """Accesses of an instruction, summed over warps.

    Attributes:
        requests: one for each warp and execution.
        moved: sectors of global memory, or passes over the banks of shared memory.
        ideal: the least that the bytes of the threads would need.
    """

    requests: int = 0
    moved: int = 0
    ideal: int = 0

    def add(self, requests: int, moved: int, ideal: int) -> None:
        """Add to each."""
        self.requests += requests
        self.moved += moved
        self.ideal += ideal


@dataclass
class Counters:
    """Counts of one launch, or of several of the same kernel.

    Attributes:
        instructions: of the kernel.
        memory: True if sectors and bank conflicts are counted, which takes time.
        warps: executions of each instruction, one for each warp.
        threads: the same for each thread.
        sectors, passes: traffic of global and of shared memory, by place.
    """

    instructions: list[Instruction]
    memory: bool = False
    warps: Array = field(init=False)
    threads: Array = field(init=False)
    sectors: dict[Place, Traffic] = field(default_factory=lambda: defaultdict(Traffic))
    passes: dict[Place, Traffic] = field(default_factory=lambda: defaultdict(Traffic))

    def __post_init__(self) -> None:
        self.warps, self.threads = (np.zeros(len(self.instructions), dtype=np.int64) for _ in range(2))

    def executed(self, begin: int, end: int, warps: int, threads: int) -> None:
        """Count instructions that some warps executed."""
        self.warps[begin:end] += warps
        self.threads[begin:end] += threads

    def global_access(self, batch: Batch, threads: Threads, addresses: Array, size: int, place: Place) -> None:
        """Count an access of ``size`` bytes of each thread to global memory."""
        if not self.memory:
            return
        warp = batch.numbers(threads) // WARP
        _, lanes = np.unique(warp, return_counts=True)
        moved = len(np.unique(np.stack((warp.astype(np.uint64), addresses // np.uint64(SECTOR))), axis=1).T)
        distinct = np.unique(np.stack((warp.astype(np.uint64), addresses)), axis=1)
        _, used = np.unique(distinct[0], return_counts=True)
        self.sectors[place].add(len(lanes), moved, int((-(-used * size // SECTOR)).sum()))

    def shared_access(self, batch: Batch, threads: Threads, addresses: Array, size: int, place: Place) -> None:
        """Count an access to shared memory: its requests take as many passes as a bank has different words to give.

        Accesses of 8 bytes are those of half warps, of 16 bytes of quarter warps.
        """
        if not self.memory:
            return
        part = WARP * WORD // max(size, WORD)
        request = batch.numbers(threads) // part
        words = (addresses // np.uint64(WORD)).astype(np.int64)
        pairs = np.concatenate([np.stack((request, words + i)) for i in range(max(size // WORD, 1))], axis=1)
        distinct = np.unique(pairs, axis=1)
        banks, depth = np.unique(distinct[0] * WARP + distinct[1] % WARP, return_counts=True)
        owners, first = np.unique(banks // WARP, return_index=True)
        passes = np.maximum.reduceat(depth, first)
        self.passes[place].add(len(np.unique(batch.numbers(threads) // WARP)), int(passes.sum()), len(owners))

    def by_opcode(self) -> dict[str, int]:
        """Return warp instructions of each opcode, the most frequent first."""
        return self._summed([each.opcode for each in self.instructions])

    def by_source(self) -> dict[str, int]:
        """Return warp instructions of each line of the source, the most frequent first; lines are empty without any."""
        return self._summed([each.place.source for each in self.instructions])

    def _summed(self, keys: list[str]) -> dict[str, int]:
        found: dict[str, int] = defaultdict(int)
        for key, count in zip(keys, self.warps.tolist(), strict=True):
            if count:
                found[key] += count
        return dict(sorted(found.items(), key=lambda each: (-each[1], each[0])))

    @property
    def active(self) -> float:
        """Threads of an executed warp instruction that take part, on average: 32 without divergence."""
        total = int(self.warps.sum())
        return int(self.threads.sum()) / total if total else 0.0

    def table(self, rows: int = 12) -> str:
        """Return the counts as a table in Markdown, with the most frequent opcodes and source lines."""
        lines = [
            "| count | |",
            "|---|--:|",
            f"| warp instructions | {int(self.warps.sum())} |",
            f"| threads per warp instruction | {self.active:.2f} |",
        ]
        for what, traffic, unit in (("global", self.sectors, "sectors"), ("shared", self.passes, "passes")):
            for place, each in traffic.items():
                where = place.source or f"PTX line {place.line}"
                figures = f"{each.moved / each.requests:.2f} {unit} per request, ideal {each.ideal / each.requests:.2f}"
                lines.append(f"| {what} {place.text.split()[0]}, {where} | {each.requests} requests, {figures} |")
        lines += [f"| {name} | {count} |" for name, count in [*self.by_opcode().items()][:rows]]
        lines += [f"| {name} | {count} |" for name, count in [*self.by_source().items()][:rows] if name]
        return "\n".join(lines)
