"""The conformance suite rejects every wrong Lion, and would not without each of its parts."""

import pytest

from lionbits_conformance import mutants, mutation_testing
from lionbits_conformance.patched_import import DoesNotApply, Edit, patched_import
from lionbits_conformance.values import KINDS


def named(name: str) -> mutants.Mutant:
    """The mutant of this name."""
    return next(mutant for mutant in mutants.ALL if mutant.name == name)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", mutants.ALL, ids=lambda mutant: mutant.name)
def test_mutant_is_rejected(mutant: mutants.Mutant) -> None:
    """A named property rejects it."""
    outcome = mutation_testing.try_mutant(mutant)
    assert outcome.rejected_by is not None, f"{mutant.name} survives: {mutant.edit}"


def test_there_are_enough() -> None:
    """At least 40, all different, of both sorts."""
    assert len({mutant.edit for mutant in mutants.ALL}) == len(mutants.ALL) >= 40
    assert len({mutant.name for mutant in mutants.ALL}) == len(mutants.ALL)
    assert mutants.KERNELS
    assert mutants.FRONT_ENDS
    for mutant in mutants.ALL:
        mutant.edit.check()


def test_nothing_is_rejected_for_being_a_copy() -> None:
    """A copy with nothing wrong in it passes every property: it is the edit that mutants are rejected for."""
    innocent = Edit("lionbits_reference/formats.py", "TINY = 2.0**-100", "TINY = 2.0**-100  # the same")
    for where in ("kernel", "front end"):
        assert mutation_testing.try_mutant(mutants.Mutant("innocent", innocent, where), patience=2).rejected_by is None


def test_an_edit_that_does_not_apply_is_an_error() -> None:
    """A mutant has to follow the source."""
    with (
        pytest.raises(DoesNotApply, match="there must be one"),
        patched_import([Edit("lionbits/step/prepare.py", "no such text", "")]),
    ):
        pass


def test_random_gradients_would_let_a_wrong_formula_through() -> None:
    """Without the cancelling kind, a fused multiply-add in the direction survives."""
    random = [kind for kind in KINDS if kind != "cancelling"]
    assert (
        mutation_testing.try_mutant(named("fused multiply-add in the direction"), random, patience=4).rejected_by
        is None
    )


def test_without_the_oracle_a_wrong_front_end_lives() -> None:
    """A backend compared with the reference under the same front end cannot see its faults."""
    for name in ("betas swapped", "rate twice", "decay forgotten"):
        assert mutation_testing.try_mutant(named(name), oracle=False, patience=2).rejected_by is None
