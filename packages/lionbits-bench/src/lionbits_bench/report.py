"""Results as JSON and as tables in markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from lionbits_cli import console
from lionbits_cli.console import Table

from . import paged_table, tables
from .results import Check, Replay, Results, Row, SuiteResult
from .tables import count, milliseconds, number, percent
from .tables import markdown as _table

#: Failures in the summary; one cause may have a hundred.
SHOWN = 15

DRY = "\nTiny sizes, to see that everything works: no number here says anything about speed.\n"

CHECKS = """\
Three steps on a few float32 tensors with decay, beside the rule in float64 (of AdamW the first step, which changes
every weight by lr). **right**: every update is the rule's, but for signs that float32 may round to either side; rounded
state may turn more, up to 2 % at 8 bits and 10 % at 4, and the number is given. **seconds**: of the whole check, in
which kernels are compiled for the first time."""

Sections = Mapping[str, Iterable[str]]


def save(results: Results, out: Path) -> None:
    """Write ``results.json`` and ``results.md``, each whole or not at all."""
    _write(out / "results.json", json.dumps(results.as_json(), indent=1) + "\n")
    _write(out / "results.md", markdown(results))


def markdown(results: Results) -> str:
    """Return all sections; an empty one says so, and one that the suite does not have is left out."""
    title, sections = _gpu(results) if results.suite == "gpu" else _run(results)
    return "\n".join((title, *(line for name, lines in sections.items() for line in _section(name, lines))))


def _gpu(results: Results) -> tuple[str, Sections]:
    title = "# lionbits on the CPU, a dry run\n" if results.dry_run else "# lionbits on a GPU\n"
    return title + (DRY if results.dry_run else ""), {
        "How it went": _parts(results),
        "Environment": _environment(results),
        "The conformance suite": _conformance(results.conformance),
        "Speed": _speed(results.speed),
        "Host time": _speed(results.host),
        "Paging": paged_table.lines(results),
        "Recorded steps": _replay(results.replay),
    }


def _run(results: Results) -> tuple[str, Sections]:
    return f"# Optimizers side by side on {'the CPU' if results.device == 'cpu' else results.device}\n" + (
        DRY if results.dry_run else ""
    ), {
        "How it went": _parts(results),
        "Environment": _environment(results),
        "What each computes": _checks(results.checks),
        "Speed": _speed(results.speed),
        "Over sizes": _sizes(results.sizes),
    }


def summary(results: Results) -> str:
    """Return a short table for the terminal, and all problems."""
    lines = ["ms of a step (percent of a copy's bandwidth; launches; microseconds of the host)"]
    keyed = sorted((*results.speed, *results.host), key=lambda row: (row.workload, row.dtype, not row.ours, row.name))
    for (name, dtype, who), rows in groupby(keyed, lambda row: (row.workload, row.dtype, row.name)):
        lines += [f"{name}, {dtype}, {who}:", *(f"    {row.variant:28} {_glance(row)}" for row in rows)]
    lines += paged_table.terminal_lines(results.paging)
    for outcome in results.conformance:
        how = "finished" if outcome.finished else "NOT FINISHED"
        lines.append(f"conformance suite of {outcome.backend}: {outcome.passed} passed, {outcome.failed} failed, {how}")
    lines += [f"replay of {r.name} {r.variant}: {_outcome(r)}" for r in results.replay]
    return "\n".join((*lines, *_troubles(results)))


def _troubles(results: Results) -> Iterator[str]:
    for label, texts in (("FAILED   ", results.failed), ("cut short", results.unfinished)):
        yield from (f"{label}  {text}" for text in texts[:SHOWN])
        if len(texts) > SHOWN:
            yield f"{label}  and {len(texts) - SHOWN} more, all in results.md"


def show(results: Results) -> None:
    """The tables of a run, on the terminal."""
    found = Table("What each computes", ("who", "variant", "found", "s"), left=("variant", "found"))
    for check in results.checks:
        found.add(check.name, check.variant, check.found, f"{check.seconds:.1f}")
    console.show(found)
    for group in tables.groups(results.speed):
        headings, *lines = tables.cells(group)
        table = Table(group.title, headings, group.caption, left=("variant", "computes", ""))
        for line in lines:
            table.add(*line)
        console.show(table)
    print("\n".join(_troubles(results)))


def _glance(row: Row) -> str:
    if row.problem:
        return row.problem
    ms, host = number(row.step_seconds, 1e3, 3), number(row.host_step_seconds, 1e6, 0)
    return f"{ms} ({percent(row.of_copy)}; {count(row.kernels)}; {host})"


def _parts(results: Results) -> Iterator[str]:
    rows = [(n, p.status, f"{p.seconds:.1f}", number(p.limit_seconds, 1, 0)) for n, p in results.parts.items()]
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


def _conformance(outcomes: Sequence[SuiteResult]) -> Iterator[str]:
    if not outcomes:
        return
    columns = ("backend", "profile", "passed", "failed", "skipped", "of", "seconds", "")
    rows = [
        (v.backend, v.profile, str(v.passed), str(v.failed), str(v.skipped), count(v.collected), f"{v.seconds:.0f}",
         "finished" if v.finished else "**not finished**")
        for v in outcomes
    ]  # fmt: skip
    yield from _table(columns, rows)
    for outcome in outcomes:
        yield from ("", f"The end of what it printed about {outcome.backend}:", "", "```text", *outcome.tail, "```")


def _speed(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield from (tables.COLUMNS, "")
    for group in tables.groups(rows):
        headings, *lines = tables.cells(group)
        yield from (f"### {group.title}", "", group.caption, "", *_table(headings, lines), "")


def _sizes(rows: Sequence[Row]) -> Iterator[str]:
    """Yield one line per optimizer, one column per size: milliseconds."""
    if not rows:
        return
    sizes = sorted({row.elements for row in rows})
    found = {(row.name, row.variant, row.dtype, row.elements): milliseconds(row.step_seconds) for row in rows}
    lines = []
    for name, variant, dtype in dict.fromkeys(key[:3] for key in found):
        lines.append((name, variant, dtype, *(found.get((name, variant, dtype, size), "-") for size in sizes)))
    yield from ("Milliseconds of a step on one tensor of so many elements.", "")
    yield from _table(("who", "variant", "dtype", *(f"2^{size.bit_length() - 1}" for size in sizes)), lines)


def _checks(checks: Sequence[Check]) -> Iterator[str]:
    """Yield the table of the checks of the rules, made before timing."""
    if not checks:
        return
    yield from (CHECKS, "")
    rows = [(c.name, c.variant, c.found, f"{c.seconds:.1f}") for c in checks]
    yield from _table(("who", "variant", "what it computes", "seconds"), rows)


def _replay(found: Sequence[Replay]) -> Iterator[str]:
    if not found:
        return
    rows = [(r.name, r.variant, r.dtype, str(r.tensors), _outcome(r), number(r.replay_seconds, 1e3, 3)) for r in found]
    yield from _table(("who", "variant", "dtype", "tensors", "against as many steps", "ms of a replay"), rows)


def _outcome(replay: Replay) -> str:
    if replay.problem:
        return replay.problem
    return "the same bits" if replay.equal else f"differs: {replay.difference}"


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield from (f"## {title}", "")
    yield from list(lines) or ["Nothing yet."]
    yield ""


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
