"""Results as JSON and as tables in markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from .results import Replay, Results, Row, Verdict

NOTHING = "-"

#: Failures in the summary; one cause may have a hundred.
SHOWN = 15

COLUMNS = """\
A row is one optimizer on one list of parameters. **ms**: median over all rounds, by the device's own events, caches
cold and the host ahead of the device, as after a backward pass. **GB/s**: the bytes that a step has to move at least
(parameters read and written, gradients read, state and scales read and written; momentum and gradient once more where
a number of the whole tensor is needed first), over that time. **of a copy**: against copying between two buffers of
the device, bytes read and written counted, measured before, between and after: the median. **launches**: kernels of a
step; **transfers**: copies and fills; **waits**: how often the host waits for the device. **host**: wall time of
`step()` itself, begun on an idle device. **peak**: most memory in tensors; **beyond**: what of it is neither
parameter, gradient nor state."""

Cells = Sequence[str]


def save(results: Results, out: Path) -> None:
    """Write ``results.json`` and ``results.md``, each whole or not at all."""
    _write(out / "results.json", json.dumps(results.as_json(), indent=1) + "\n")
    _write(out / "results.md", markdown(results))


def markdown(results: Results) -> str:
    """All sections; one that has nothing yet says so."""
    title = "# lionbits on the CPU, a dry run\n" if results.dry_run else "# lionbits on a GPU\n"
    if results.dry_run:
        title += "\nTiny sizes, to see that everything works: no number here says anything about speed.\n"
    return "\n".join(
        (
            title,
            *_section("How it went", _parts(results)),
            *_section("Environment", _environment(results)),
            *_section("The court", _court(results.court)),
            *_section("Speed", _speed(results.speed)),
            *_section("Host time", _speed(results.host)),
            *_section("Recorded steps", _replay(results.replay)),
        )
    )


def summary(results: Results) -> str:
    """A short table for the terminal, and what is not as it should be."""
    lines = ["ms of a step (percent of a copy's bandwidth; launches; microseconds of the host)"]
    keyed = sorted((*results.speed, *results.host), key=lambda row: (row.workload, row.dtype, not row.ours, row.name))
    for (name, dtype, who), rows in groupby(keyed, lambda row: (row.workload, row.dtype, row.name)):
        lines += [f"{name}, {dtype}, {who}:", *(f"    {row.variant:28} {_glance(row)}" for row in rows)]
    for verdict in results.court:
        how = "finished" if verdict.finished else "NOT FINISHED"
        lines.append(f"court of {verdict.backend}: {verdict.passed} passed, {verdict.failed} failed, {how}")
    lines += [f"replay of {r.name} {r.variant}: {_outcome(r)}" for r in results.replay]
    for label, texts in (("FAILED   ", results.failed), ("cut short", results.unfinished)):
        lines += [f"{label}  {text}" for text in texts[:SHOWN]]
        lines += [f"{label}  and {len(texts) - SHOWN} more, all in results.md"] if len(texts) > SHOWN else []
    return "\n".join(lines)


def _glance(row: Row) -> str:
    if row.problem:
        return row.problem
    ms, host = _number(row.step_seconds, 1e3, 3), _number(row.host_step_seconds, 1e6, 0)
    return f"{ms} ({_percent(row.of_copy)}; {_count(row.kernels)}; {host})"


def _parts(results: Results) -> Iterator[str]:
    rows = [(n, p.status, f"{p.seconds:.1f}", f"{p.limit_seconds:.0f}") for n, p in results.parts.items()]
    yield from _table(("part", "", "seconds", "of"), rows)
    for heading, texts in (("Failed", results.failed), ("Not reached", results.unfinished)):
        if texts:
            yield from ("", f"{heading}:", "", *(f"- {text}" for text in texts))


def _environment(results: Results) -> Iterator[str]:
    if not results.environment:
        return
    yield from _table(("what", "found"), results.environment.items())
    yield ""
    yield from _table(("backend", f"on {results.device}"), ((n, r or "serves") for n, r in results.diagnoses.items()))
    yield ""
    yield from _table(("peer", "version"), results.peers.items())


def _court(verdicts: Sequence[Verdict]) -> Iterator[str]:
    if not verdicts:
        return
    columns = ("backend", "profile", "passed", "failed", "skipped", "of", "seconds", "")
    rows = [
        (v.backend, v.profile, str(v.passed), str(v.failed), str(v.skipped), _count(v.collected), f"{v.seconds:.0f}",
         "finished" if v.finished else "**not finished**")
        for v in verdicts
    ]  # fmt: skip
    yield from _table(columns, rows)
    for verdict in verdicts:
        yield from ("", f"The end of what it printed about {verdict.backend}:", "", "```text", *verdict.tail, "```")


def _speed(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield from (COLUMNS, "")
    columns = (
        *("who", "variant", "ms", "GB/s", "of a copy", "launches", "transfers", "waits"),
        *("host µs", "peak GB", "beyond MB", ""),
    )
    for (name, remark, dtype), group in groupby(rows, lambda row: (row.workload, row.remark, row.dtype)):
        members = list(group)
        first = members[0]
        yield f"### {name}, {dtype}" + (f": {remark}" if remark else "")
        copy = _number(first.copy_bandwidth, 1e-9, 1)
        yield from ("", f"{first.tensors:,} tensors, {first.elements:,} elements; a copy ran at {copy} GB/s.", "")
        yield from _table(columns, map(_row, members))
        yield ""


def _row(row: Row) -> Cells:
    return (
        row.name,
        row.variant,
        _number(row.step_seconds, 1e3, 3),
        _number(row.bandwidth, 1e-9, 1),
        _percent(row.of_copy),
        _count(row.kernels),
        _count(row.transfers),
        _count(row.waits),
        _number(row.host_step_seconds, 1e6, 0),
        _number(row.peak_bytes, 1e-9, 2),
        _number(row.temporary_bytes, 1e-6, 1),
        row.problem,
    )


def _replay(found: Sequence[Replay]) -> Iterator[str]:
    if not found:
        return
    rows = [(r.name, r.variant, r.dtype, str(r.tensors), _outcome(r), _number(r.replay_seconds, 1e3, 3)) for r in found]
    yield from _table(("who", "variant", "dtype", "tensors", "against as many steps", "ms of a replay"), rows)


def _outcome(replay: Replay) -> str:
    if replay.problem:
        return replay.problem
    return "the same bits" if replay.equal else f"differs: {replay.difference}"


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield from (f"## {title}", "")
    yield from list(lines) or ["Nothing yet."]
    yield ""


def _table(columns: Cells, rows: Iterable[Cells]) -> Iterator[str]:
    for cells in (columns, ["---"] * len(columns), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _number(value: float | None, factor: float, digits: int) -> str:
    return NOTHING if value is None else f"{value * factor:,.{digits}f}"


def _percent(value: float | None) -> str:
    return _number(value, 100, 0) + ("" if value is None else " %")


def _count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
