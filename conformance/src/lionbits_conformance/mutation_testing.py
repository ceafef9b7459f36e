"""Mutation testing: ``python -m lionbits_conformance.mutation_testing`` prints which property rejects each mutant."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import lionbits
from lionbits_reference.spec import Backend

from . import mutants, oracle_check, properties, runs, strategies
from .patched_import import PatchedImport, patched_import
from .values import KINDS

#: Examples of each property and stratum of plans that a mutant may survive, and how many of each are tried first: most
#: mutants are rejected by the first examples of some property.
PATIENCE, FIRST = 60, 2


class MutationResult(NamedTuple):
    """The property that rejected a mutant, or None, and the number of examples over all properties tried."""

    mutant: str
    rejected_by: str | None
    examples: int


class Check(NamedTuple):
    """One property put to a mutant."""

    name: str
    strategy: st.SearchStrategy[Any]
    holds: Callable[[Any], None]


def try_mutant(
    mutant: mutants.Mutant, kinds: Sequence[str] = KINDS, oracle: bool = True, patience: int = PATIENCE
) -> MutationResult:
    """Put every property that can see this mutant to it, until one rejects it.

    Args:
        mutant: whom.
        kinds: of gradients; leave some out to see what they are good for.
        oracle: whether the oracle may speak.
        patience: examples of each property and stratum.
    """
    with patched_import([mutant.edit]) as wrong:
        return _try(mutant.name, list(_checks(mutant, wrong, kinds, oracle)), patience)


def try_backend(name: str, backend: Backend, patience: int = PATIENCE) -> MutationResult:
    """Put every property of calls to a backend with a fault in it, until one rejects it.

    For faults that a copy of the reference cannot have: swapped nibbles, a tail that is not masked, a missing barrier.

    Args:
        name: of the fault.
        backend: on the CPU.
        patience: examples of each property and stratum.
    """
    return _try(name, list(_call_checks(backend, KINDS)), patience)


def _try(name: str, checks: Sequence[Check], patience: int) -> MutationResult:
    spent = 0
    for most in sorted({min(FIRST, patience), patience}):
        for check in checks:
            examples, rejected = _examples_until_rejected(check, most)
            spent += examples
            if rejected:
                return MutationResult(name, check.name, spent)
    return MutationResult(name, None, spent)


def _checks(mutant: mutants.Mutant, wrong: PatchedImport, kinds: Sequence[str], oracle: bool) -> Iterator[Check]:
    """The properties that can see this mutant, the likeliest first; each stratum of plans in turn."""
    if mutant.where == "kernel":
        yield from _call_checks(wrong.reference, kinds)
    if oracle:
        # A wrong kernel is checked under the right front end, a wrong front end over the right kernel.
        lion = lionbits.Lion if mutant.where == "kernel" else wrong.lionbits.Lion
        backend: Any = wrong.reference if mutant.where == "kernel" else "reference"
        for bits, dtype in strategies.STRATA:
            strategy = strategies.trials(kinds, bits, dtype)
            yield Check("oracle_agrees", strategy, lambda run: oracle_check.oracle_agrees(lion, backend, run))
    if mutant.where == "front end":
        for name, run_check in runs.RUNS.items():
            for bits, dtype in strategies.STRATA:
                yield Check(name, strategies.runs(kinds, bits=bits, dtype=dtype), _run_check(run_check, wrong))


def _call_checks(wrong: Any, kinds: Sequence[str]) -> Iterator[Check]:
    for name, check in properties.CALLS.items():
        for bits, dtype in strategies.STRATA:
            yield Check(name, strategies.cases(kinds, bits=bits, dtype=dtype), _call_check(check, wrong))


def _call_check(check: properties.Property, wrong: Any) -> Callable[[Any], None]:
    return lambda case: check(wrong, case, properties.CPU)


def _run_check(check: runs.Property, wrong: PatchedImport) -> Callable[[Any], None]:
    return lambda run: check(wrong.lionbits.Lion, "reference", run, properties.CPU)


def _examples_until_rejected(check: Check, patience: int) -> tuple[int, bool]:
    """How many examples it took, and whether the property was broken. A mutant that crashes is rejected as well."""
    seen = 0

    @settings(
        max_examples=patience,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(check.strategy)
    def examine(example: Any) -> None:
        nonlocal seen
        seen += not rejected
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check.holds(example)
        except Exception:
            rejected.append(example)
            raise

    rejected: list[Any] = []
    try:
        examine()
    except Exception:
        if not rejected:
            raise
    return seen, bool(rejected)


def main(argv: Sequence[str] | None = None) -> int:
    """Print how every mutant fared; the exit code counts those that live."""
    parser = argparse.ArgumentParser(prog="lionbits_conformance.mutation_testing", description=main.__doc__)
    parser.add_argument("--without", action="append", default=[], help="a kind of gradients, or 'oracle'")
    parser.add_argument("--only", help="mutants whose name contains this")
    parser.add_argument("--patience", type=int, default=PATIENCE, help="examples of each property and stratum of plans")
    asked = parser.parse_args(argv)
    kinds = [kind for kind in KINDS if kind not in asked.without]
    chosen = [mutant for mutant in mutants.ALL if asked.only is None or asked.only in mutant.name]
    living = 0
    for mutant in chosen:
        outcome = try_mutant(mutant, kinds, "oracle" not in asked.without, asked.patience)
        living += outcome.rejected_by is None
        fate = f"rejected by {outcome.rejected_by}" if outcome.rejected_by else "WHOLE_STEPS"
        print(f"{mutant.where:9}  {mutant.name:44}  {fate:40}  {outcome.examples:5} examples", flush=True)
    print(f"{len(chosen) - living} of {len(chosen)} rejected")
    return living


if __name__ == "__main__":
    sys.exit(main())
