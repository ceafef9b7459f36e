"""The results of a run as plain data, written after every part, so that a killed run loses little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

from .transfers import Crossing, TransferStats

SCHEMA = 1

#: Parts whose findings are rows, by their names in :class:`Results`.
MEASURED = ("speed", "host", "sizes", "paging")


def in_a_line(error: Exception) -> str:
    """Return the kind of an error and the first line of its message, for tables."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def spread(samples: Sequence[float]) -> float | None:
    """Return the distance between the quartiles; None for fewer than two samples."""
    if len(samples) < 2:
        return None
    low, high = quartiles(samples)
    return high - low


def quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile of one sample or more."""
    if len(samples) == 1:
        return samples[0], samples[0]
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return low, high


@dataclass
class Findings:
    """Failures of a part, and measurements that it did not reach, in sentences."""

    failed: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)


@dataclass
class Part:
    """Status of a part of the suite: ``waiting``, ``started``, ``complete``, ``cut short`` or ``failed``."""

    status: str = "waiting"
    seconds: float = 0.0
    limit_seconds: float | None = 0.0
    findings: Findings = field(default_factory=Findings)


@dataclass
class SuiteResult:
    """Result of the conformance suite on a backend. ``collected`` is None if it did not get that far."""

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
    """One optimizer on one workload. A problem says why there are no numbers; None is what a device cannot measure."""

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
    grown_bytes: int | None = None
    start_seconds: float | None = None
    computes: str = ""
    kernels: int | None = None
    transfers: int | None = None
    waits: int | None = None
    moved: TransferStats | None = None

    @property
    def title(self) -> str:
        """Name and variant, for a line of progress."""
        return f"{self.name} {self.variant}, {self.dtype}"

    @property
    def step_seconds(self) -> float | None:
        """Median of the step."""
        return median(self.seconds) if self.seconds else None

    @property
    def spread(self) -> float | None:
        """Distance between the quartiles, in seconds."""
        return spread(self.seconds)

    @property
    def host_step_seconds(self) -> float | None:
        """Median of the call alone."""
        return median(self.host_seconds) if self.host_seconds else None

    @property
    def bandwidth(self) -> float | None:
        """Bytes of the floor per second, however many a step really moved."""
        step = self.step_seconds
        return None if step is None or self.floor_bytes is None else self.floor_bytes / step

    @property
    def of_copy(self) -> float | None:
        """Bandwidth as a fraction of a plain copy's."""
        ours, copy = self.bandwidth, self.copy_bandwidth
        return None if ours is None or copy is None else ours / copy

    @property
    def crossing_bandwidth(self) -> float | None:
        """Bytes per second that a paged step copied between host and device, both ways together."""
        return None if self.moved is None else self.moved.bandwidth(self.step_seconds)

    @property
    def of_bus(self) -> float | None:
        """Fraction of the bus's bandwidth, both ways at once."""
        return None if self.moved is None else self.moved.of_bus(self.step_seconds)

    @property
    def temporary_bytes(self) -> int | None:
        """Peak memory beyond parameters, gradients and state; growth during a step if tensors are not counted."""
        if self.peak_bytes is None or self.held_bytes is None:
            return self.grown_bytes
        return self.peak_bytes - self.held_bytes


@dataclass
class Replay:
    """A recorded step, replayed beside an optimizer that takes plain steps."""

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
        """Median of a replay."""
        return median(self.seconds) if self.seconds else None


@dataclass
class Check:
    """Result of the check of one optimizer's rule, and the time of its first steps, compiling included."""

    name: str
    variant: str
    found: str
    seconds: float

    @property
    def right(self) -> bool:
        """True if it follows its rule."""
        return self.found.startswith("right")


@dataclass
class Results:
    """All results. ``copies`` are bandwidths in bytes per second in the order in which they were measured.

    ``minutes`` limits the run, None: no limit; ``sizes`` are rows over sizes of one tensor;
    ``managed`` is True if peers that page by managed memory are included.
    """

    dry_run: bool
    device: str
    minutes: float | None
    backends: list[str]
    parts: dict[str, Part]
    environment: dict[str, str] = field(default_factory=dict)
    diagnoses: dict[str, str] = field(default_factory=dict)
    peers: dict[str, str] = field(default_factory=dict)
    conformance: list[SuiteResult] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)
    speed: list[Row] = field(default_factory=list)
    host: list[Row] = field(default_factory=list)
    replay: list[Replay] = field(default_factory=list)
    suite: str = "gpu"
    checks: list[Check] = field(default_factory=list)
    sizes: list[Row] = field(default_factory=list)
    managed: bool = False
    bus: list[Crossing] = field(default_factory=list)
    paging: list[Row] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """All failures, with the part's name in front."""
        return [f"{name}: {text}" for name, part in self.parts.items() for text in part.findings.failed]

    @property
    def unfinished(self) -> list[str]:
        """All measurements that were not reached."""
        return [f"{name}: {text}" for name, part in self.parts.items() for text in part.findings.unfinished]

    def as_json(self) -> dict[str, Any]:
        """Return all samples, and beside them the numbers of the tables."""
        written = {"schema": SCHEMA, **asdict(self)}
        for part in MEASURED:
            rows: list[Row] = getattr(self, part)
            written[part] = [asdict(row) | _derived(row) for row in rows]
        written["bus"] = [asdict(crossing) | {"bandwidth": crossing.bandwidth} for crossing in self.bus]
        return written


def _derived(row: Row) -> dict[str, float | None]:
    return {
        "step_seconds": row.step_seconds,
        "spread": row.spread,
        "host_step_seconds": row.host_step_seconds,
        "bandwidth": row.bandwidth,
        "of_copy": row.of_copy,
        "temporary_bytes": row.temporary_bytes,
        "crossing_bandwidth": row.crossing_bandwidth,
        "of_bus": row.of_bus,
    }
