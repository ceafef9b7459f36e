"""Mutation testing: ``python -m lionbits_conformance.mutation_testing`` prints which property rejects each mutant."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lionbits_reference.spec import Backend

from . import bits, checks, mutants, plugin, strategies
from .checks import Check
from .children import Ended, in_child
from .fault_injection import with_fault
from .mutants import population
from .mutants.generator import Generated
from .patched_import import Edit, patched_import
from .values import KINDS

#: Examples of each property and stratum of plans that a mutant may survive, and how many of each are tried first: most
#: mutants are rejected by the first examples of some property.
PATIENCE, FIRST = 60, 2

#: Seconds that the checks of one generated mutant may take: some of them never end.
LIMIT = 900.0


class MutationResult(NamedTuple):
    """What became of a mutant.

    Attributes:
        mutant: its name.
        rejected_by: the property that rejected it, or None.
        examples: over all properties tried.
        error: what was raised: ``"Disagreement"`` of bits, or the name of another error.
    """

    mutant: str
    rejected_by: str | None
    examples: int
    error: str = ""


def try_mutant(
    mutant: mutants.Mutant,
    kinds: Sequence[str] = KINDS,
    oracle: bool = True,
    patience: int = PATIENCE,
    seed: int | None = None,
) -> MutationResult:
    """Put every property that can see this mutant to it, until one rejects it.

    Args:
        mutant: whom.
        kinds: of gradients; leave some out to see what they are good for.
        oracle: whether the oracle may speak.
        patience: examples of each property and stratum.
        seed: of the examples; the same ones each time if it is None.
    """
    with patched_import([mutant.edit]) as wrong:
        if mutant.where == "kernel":
            found = checks.of_kernels(wrong.reference, kinds, oracle)
        else:
            found = checks.of_front_ends(wrong.lionbits.Lion, kinds, oracle)
        return try_checks(mutant.name, list(found), patience, seed)


def try_backend(name: str, backend: Backend, patience: int = PATIENCE, seed: int | None = None) -> MutationResult:
    """Put every property of calls to a backend with a fault in it, until one rejects it.

    For faults that a copy of the reference cannot have: swapped nibbles, a tail that is not masked, a missing barrier.

    Args:
        name: of the fault.
        backend: on the CPU.
        patience: examples of each property and stratum.
        seed: of the examples; the same ones each time if it is None.
    """
    return try_checks(name, list(checks.of_calls(backend, KINDS)), patience, seed)


def try_generated(
    target: str, mutant: Generated, patience: int, seed: int | None = None, limit: float = LIMIT
) -> MutationResult:
    """Put every property to a generated mutant, in a process of its own.

    Args:
        target: a key of ``population.FILES``.
        mutant: of the target.
        patience: examples of each property and stratum.
        seed: of the examples; the same ones each time if it is None.
        limit: seconds after which a mutant that has not come to an end is rejected for that.
    """
    try:
        if target in ("reference", "front end"):
            named = mutants.Mutant(mutant.name, mutant.edit, "kernel" if target == "reference" else target)
            return in_child(partial(_try_import, named, patience, seed), limit)
        with tempfile.TemporaryDirectory() as folder:
            backend = "cupy" if target == "table" else target
            return in_child(partial(_try_copy, backend, mutant.name, mutant.edit, Path(folder), patience, seed), limit)
    except Ended as error:
        return MutationResult(mutant.name, "its process", 0, str(error))


def _try_import(mutant: mutants.Mutant, patience: int, seed: int | None) -> MutationResult:
    try:
        return try_mutant(mutant, patience=patience, seed=seed)
    except Exception as error:  # noqa: BLE001 - any, while the copy is imported
        return MutationResult(mutant.name, "import", 0, type(error).__name__)


def _try_copy(backend: str, name: str, edit: Edit, folder: Path, patience: int, seed: int | None) -> MutationResult:
    package, table = importlib.import_module(f"lionbits_{backend}"), importlib.import_module("lionbits_table")
    same = folder.parent / f"lionbits-mutant-{backend}"  # a name that compilers' caches know again
    try:
        folder.rename(same)
    except OSError:  # another is being tried
        same = folder
    try:
        with with_fault(package, [edit], same, [table]) as wrong:
            if backend == "cupy":
                wrong.emulate.module()  # its compiler says whether it is a program
            return try_backend(name, wrong, patience, seed)
    except Exception as error:  # noqa: BLE001 - any, while the copy is imported or compiled
        return MutationResult(name, "import", 0, type(error).__name__)
    finally:
        if same is not folder:
            same.rename(folder)


def try_checks(name: str, found: Sequence[Check], patience: int, seed: int | None = None) -> MutationResult:
    """Try properties in turn, first with few examples of each, until one rejects what they are about.

    Args:
        name: of that.
        found: the properties.
        patience: examples of each property and stratum.
        seed: of the examples; the same ones each time if it is None.
    """
    spent = 0
    for number, most in enumerate(sorted({min(FIRST, patience), patience})):
        for check in found:
            if number and not isinstance(check.examples, st.SearchStrategy):
                continue
            examples, error = _examples_until_rejected(check, most, seed)
            spent += examples
            if error is not None:
                return MutationResult(name, check.name, spent, type(error).__name__)
    return MutationResult(name, None, spent)


def _examples_until_rejected(check: Check, patience: int, seed: int | None) -> tuple[int, Exception | None]:
    """How many examples it took, and what broke the property. A mutant that crashes is rejected as well."""
    seen, errors = 0, list[Exception]()

    def examine(example: Any) -> None:
        nonlocal seen
        seen += not errors
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check.holds(example)
        except Exception as error:
            errors.append(error)
            raise

    try:
        if isinstance(check.examples, st.SearchStrategy):
            _draw(examine, check.examples, max(round(check.share * patience), 1), seed)
        else:
            for example in check.examples:
                examine(example)
    except Exception:
        if not errors:
            raise
    return seen, errors[0] if errors else None


def _draw(examine: Callable[[Any], None], strategy: st.SearchStrategy[Any], count: int, seed: int | None) -> None:
    drawn = settings(
        max_examples=count,
        phases=[Phase.generate],
        derandomize=seed is None,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )(given(strategy)(examine))
    (drawn if seed is None else hypothesis.seed(seed)(drawn))()


def patience_of(profile: str) -> int:
    """How many examples the suite draws of each property and stratum with a profile."""
    return max(int(plugin.PROFILES[profile]["max_examples"]) // len(strategies.STRATA), 4)


def main(argv: Sequence[str] | None = None) -> int:
    """Print how every mutant fared; the exit code is 1 where one survives."""
    parser = argparse.ArgumentParser(prog="lionbits_conformance.mutation_testing", description=main.__doc__)
    parser.add_argument("--without", action="append", default=[], help="a kind of gradients, or 'oracle'")
    parser.add_argument("--only", help="mutants whose name contains this")
    parser.add_argument("--patience", type=int, help="examples of each property and stratum of plans")
    parser.add_argument("--profile", default="ci", choices=plugin.PROFILES, help="as many as the suite draws with this")
    parser.add_argument("--seed", type=int, help="of the examples; without it they are always the same")
    parser.add_argument(
        "--generated", choices=population.FILES, action="append", default=[], help="generated ones of this"
    )
    parser.add_argument("--sample", type=int, help="so many of each that is generated; 0: all")
    parser.add_argument("--record", type=Path, help="a file that a line of JSON is added to for each")
    asked = parser.parse_args(argv)
    patience = patience_of(asked.profile) if asked.patience is None else asked.patience
    counts = {"survived": 0, "all": 0, "none": 0}
    for where, outcome, seconds in _outcomes(asked, patience):
        fate = "is no program" if outcome.rejected_by == "import" else f"rejected by {outcome.rejected_by}"
        fate = fate if outcome.rejected_by else "SURVIVES"
        counts["survived"] += outcome.rejected_by is None
        counts["none"] += outcome.rejected_by == "import"
        counts["all"] += 1
        if outcome.error not in ("", bits.Disagreement.__name__):
            fate += f" ({outcome.error})"
        print(f"{where:9}  {outcome.mutant:60}  {fate:52}  {outcome.examples:5} examples", flush=True)
        if asked.record is not None:
            with asked.record.open("a") as file:
                file.write(json.dumps({"where": where, **outcome._asdict(), "seconds": round(seconds, 1)}) + "\n")
    programs = counts["all"] - counts["none"]
    chosen = "the same examples always" if asked.seed is None else f"seed {asked.seed}"
    print(
        f"{programs - counts['survived']} of {programs} rejected; {patience} examples per property and stratum,"
        f" {chosen}"
    )
    return min(counts["survived"], 1)


def _outcomes(asked: argparse.Namespace, patience: int) -> Iterable[tuple[str, MutationResult, float]]:
    """What became of each that was asked for, and how many seconds it took."""
    kinds = [kind for kind in KINDS if kind not in asked.without]
    tries: list[tuple[str, str, Callable[[], MutationResult]]] = []
    if asked.generated:
        for target in asked.generated:
            chosen = population.every(target) if asked.sample == 0 else population.sample(target, asked.sample)
            tries += [(target, one.name, partial(try_generated, target, one, patience, asked.seed)) for one in chosen]
    else:
        for mutant in mutants.ALL:
            with_oracle = "oracle" not in asked.without
            found = partial(try_mutant, mutant, kinds, with_oracle, patience, asked.seed)
            tries.append((mutant.where, mutant.name, found))
    for where, name, trial in tries:
        if asked.only is None or asked.only in name:
            begun = time.monotonic()
            yield where, trial(), time.monotonic() - begun


if __name__ == "__main__":
    sys.exit(main())
