"""Trying the mutants: ``python -m lionbits_conformance.trials`` prints which law rejects each, and how soon."""

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

from . import judgement, laws, mutants, runs, strategies
from .universe import Universe, universe
from .values import KINDS

#: Examples of each law and stratum of plans that a mutant may survive, and how many of each are tried before that: most
#: mutants are rejected by the first examples of some law, long before the laws in front of it have run out of theirs.
PATIENCE, GLANCE = 20, 2


class Verdict(NamedTuple):
    """How a mutant fared: the law that rejected it and the examples that took, over all laws tried; or None."""

    mutant: str
    law: str | None
    examples: int


class Charge(NamedTuple):
    """One law put to a mutant."""

    law: str
    strategy: st.SearchStrategy[Any]
    check: Callable[[Any], None]


def try_mutant(
    mutant: mutants.Mutant, kinds: Sequence[str] = KINDS, oracle: bool = True, patience: int = PATIENCE
) -> Verdict:
    """Put every law that can see this mutant to it, until one rejects it.

    Args:
        mutant: whom.
        kinds: of gradients; leave some out to see what they are good for.
        oracle: whether the oracle may speak.
        patience: examples of each law and stratum.
    """
    with universe([mutant.edit]) as wrong:
        return _try(mutant.name, list(_charges(mutant, wrong, kinds, oracle)), patience)


def try_backend(name: str, backend: Backend, patience: int = PATIENCE) -> Verdict:
    """Put every law of calls to a backend with a fault in it, until one rejects it.

    For faults that a copy of the reference cannot have: swapped nibbles, a tail that is not masked, a missing barrier.

    Args:
        name: of the fault.
        backend: on the CPU.
        patience: examples of each law and stratum.
    """
    return _try(name, list(_call_charges(backend, KINDS)), patience)


def _try(name: str, charges: Sequence[Charge], patience: int) -> Verdict:
    spent = 0
    for most in sorted({min(GLANCE, patience), patience}):
        for charge in charges:
            examples, rejected = _examples_until_rejected(charge, most)
            spent += examples
            if rejected:
                return Verdict(name, charge.law, spent)
    return Verdict(name, None, spent)


def _charges(mutant: mutants.Mutant, wrong: Universe, kinds: Sequence[str], oracle: bool) -> Iterator[Charge]:
    """The laws that can see this mutant, the likeliest first; each stratum of plans in turn."""
    if mutant.where == "kernel":
        yield from _call_charges(wrong.reference, kinds)
    if oracle:
        # A wrong kernel is judged under the right front end, a wrong front end over the right kernel.
        lion = lionbits.Lion if mutant.where == "kernel" else wrong.lionbits.Lion
        backend: Any = wrong.reference if mutant.where == "kernel" else "reference"
        for bits, dtype in strategies.STRATA:
            strategy = strategies.trials(kinds, bits, dtype)
            yield Charge("oracle_agrees", strategy, lambda run: judgement.oracle_agrees(lion, backend, run))
    if mutant.where == "front end":
        for name, run_law in runs.RUNS.items():
            for bits, dtype in strategies.STRATA:
                yield Charge(name, strategies.runs(kinds, bits=bits, dtype=dtype), _run_law(run_law, wrong))


def _call_charges(wrong: Any, kinds: Sequence[str]) -> Iterator[Charge]:
    for name, law in laws.CALLS.items():
        for bits, dtype in strategies.STRATA:
            yield Charge(name, strategies.cases(kinds, bits=bits, dtype=dtype), _call_law(law, wrong))


def _call_law(law: laws.Law, wrong: Any) -> Callable[[Any], None]:
    return lambda case: law(wrong, case, laws.CPU)


def _run_law(law: runs.Law, wrong: Universe) -> Callable[[Any], None]:
    return lambda run: law(wrong.lionbits.Lion, "reference", run, laws.CPU)


def _examples_until_rejected(charge: Charge, patience: int) -> tuple[int, bool]:
    """How many examples it took, and whether the law was broken. A mutant that crashes is rejected as well."""
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
    @given(charge.strategy)
    def examine(example: Any) -> None:
        nonlocal seen
        seen += not rejected
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                charge.check(example)
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
    parser = argparse.ArgumentParser(prog="lionbits_conformance.trials", description=main.__doc__)
    parser.add_argument("--without", action="append", default=[], help="a kind of gradients, or 'oracle'")
    parser.add_argument("--only", help="mutants whose name contains this")
    parser.add_argument("--patience", type=int, default=PATIENCE, help="examples of each law and stratum of plans")
    asked = parser.parse_args(argv)
    kinds = [kind for kind in KINDS if kind not in asked.without]
    chosen = [mutant for mutant in mutants.ALL if asked.only is None or asked.only in mutant.name]
    living = 0
    for mutant in chosen:
        verdict = try_mutant(mutant, kinds, "oracle" not in asked.without, asked.patience)
        living += verdict.law is None
        fate = f"rejected by {verdict.law}" if verdict.law else "LIVES"
        print(f"{mutant.where:9}  {mutant.name:44}  {fate:40}  {verdict.examples:5} examples", flush=True)
    print(f"{len(chosen) - living} of {len(chosen)} rejected")
    return living


if __name__ == "__main__":
    sys.exit(main())
