"""What a run found, as plain data: written after every part, so that a kill loses little."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

SCHEMA = 1


def in_a_line(error: Exception) -> str:
    """The kind of an error and the first line of its message, as tables have room for."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@dataclass
class Findings:
    """What went wrong in a part, and what it did not get to, in sentences."""

    failed: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)


@dataclass
class Part:
    """How a part of the programme went: ``waiting``, ``started``, ``complete``, ``cut short`` or ``failed``."""

    status: str = "waiting"
    seconds: float = 0.0
    limit_seconds: float = 0.0
    findings: Findings = field(default_factory=Findings)


@dataclass
class Verdict:
    """What the court says of a backend. ``collected`` is None where it never got that far."""

    backend: str
    device: str
    profile: str
    exit_code: int | None = None
    finished: bool = False
    seconds: float = 0.0
    collected: int | None = None
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    tail: list[str] = field(default_factory=list)


@dataclass
class Row:
    """One optimizer on one workload. A problem says why there are no numbers; None is what a device cannot tell."""

    workload: str
    remark: str
    tensors: int
    elements: int
    dtype: str
    name: str
    variant: str
    ours: bool
    problem: str = ""
    seconds: list[float] = field(default_factory=list)
    host_seconds: list[float] = field(default_factory=list)
    first_step_seconds: float | None = None
    floor_bytes: int | None = None
    copy_bandwidth: float | None = None
    held_bytes: int | None = None
    peak_bytes: int | None = None
    kernels: int | None = None
    transfers: int | None = None
    waits: int | None = None

    @property
    def title(self) -> str:
        """Who, in a line of progress."""
        return f"{self.name} {self.variant}, {self.dtype}"

    @property
    def step_seconds(self) -> float | None:
        """The median."""
        return median(self.seconds) if self.seconds else None

    @property
    def host_step_seconds(self) -> float | None:
        """The median of the call alone."""
        return median(self.host_seconds) if self.host_seconds else None

    @property
    def bandwidth(self) -> float | None:
        """Bytes of the floor per second: what a step is worth, whatever it really moved."""
        step = self.step_seconds
        return None if step is None or self.floor_bytes is None else self.floor_bytes / step

    @property
    def of_copy(self) -> float | None:
        """Bandwidth as a fraction of a plain copy's."""
        ours, copy = self.bandwidth, self.copy_bandwidth
        return None if ours is None or copy is None else ours / copy

    @property
    def temporary_bytes(self) -> int | None:
        """Peak memory beyond parameters, gradients and state."""
        return None if self.peak_bytes is None or self.held_bytes is None else self.peak_bytes - self.held_bytes


@dataclass
class Replay:
    """A recorded step, replayed beside a twin that steps as usual."""

    name: str
    variant: str
    dtype: str
    tensors: int
    problem: str = ""
    replays: int = 0
    equal: bool | None = None
    difference: str = ""
    seconds: list[float] = field(default_factory=list)

    @property
    def replay_seconds(self) -> float | None:
        """The median."""
        return median(self.seconds) if self.seconds else None


@dataclass
class Results:
    """Everything. ``copies`` are bandwidths in bytes per second in the order in which they were measured."""

    dry_run: bool
    device: str
    minutes: float
    backends: list[str]
    parts: dict[str, Part]
    environment: dict[str, str] = field(default_factory=dict)
    diagnoses: dict[str, str] = field(default_factory=dict)
    peers: dict[str, str] = field(default_factory=dict)
    court: list[Verdict] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)
    speed: list[Row] = field(default_factory=list)
    host: list[Row] = field(default_factory=list)
    replay: list[Replay] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """Everything that went wrong, with the part's name in front."""
        return [f"{name}: {text}" for name, part in self.parts.items() for text in part.findings.failed]

    @property
    def unfinished(self) -> list[str]:
        """Everything that was not reached."""
        return [f"{name}: {text}" for name, part in self.parts.items() for text in part.findings.unfinished]

    def as_json(self) -> dict[str, Any]:
        """All samples, and beside them the numbers of the tables."""
        written = {"schema": SCHEMA, "programme": "gpu", **asdict(self)}
        for part in ("speed", "host"):
            rows: list[Row] = getattr(self, part)
            written[part] = [asdict(row) | _derived(row) for row in rows]
        return written


def _derived(row: Row) -> dict[str, float | None]:
    return {
        "step_seconds": row.step_seconds,
        "host_step_seconds": row.host_step_seconds,
        "bandwidth": row.bandwidth,
        "of_copy": row.of_copy,
        "temporary_bytes": row.temporary_bytes,
    }
