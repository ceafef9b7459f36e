"""The conformance suite rejects every wrong Lion, and would not without each of its parts."""

import os
import time

import pytest

from lionbits_conformance import children, mutants, mutation_testing
from lionbits_conformance.mutants import generator, population
from lionbits_conformance.patched_import import DoesNotApply, Edit, patched_import


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


#: Of generated mutants, those that are tried here; `nox -s mutants` tries all.
GENERATED = [
    (target, mutant)
    for target, count in (("reference", 24), ("front end", 12), ("table", 6))
    for mutant in (population.sample(target, count) if population.targets([target]) else [])
]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "mutant"), GENERATED, ids=lambda value: getattr(value, "name", value))
def test_generated_mutant_is_rejected(target: str, mutant: generator.Generated) -> None:
    """One that is not known to be equivalent, nor to live, breaks some property."""
    outcome = mutation_testing.try_generated(target, mutant, mutation_testing.patience_of("ci"))
    assert outcome.rejected_by is not None, f"{mutant.name} survives: {mutant.edit}"


@pytest.mark.parametrize(
    "known", [*population.equivalents(), *population.surviving()], ids=lambda known: str(known.place)
)
def test_what_is_known_of_a_mutant_is_known_of_one(known: population.Known) -> None:
    """The source still has the line that an entry is about, and the entry a reason."""
    file = known.place[0]
    if not population.targets([target for target, files in population.FILES.items() if file in files]):
        pytest.skip("its package is not installed")
    assert known.place in {mutant.place for mutant in population.of_file(file)}
    assert known.reason


def test_the_generator_names_file_line_and_edit() -> None:
    """The same list each time; each is one edit, which stands once in the text."""
    text = "def f(a, b):\n    # a < b\n    if a < b and b:\n        return a - 1\n    return b - 1\n"
    made = generator.generated("x.py", text)
    assert made == generator.generated("x.py", text)
    assert len({mutant.name for mutant in made}) == len(made)
    assert 'x.py:3: "<" -> "<="' in [mutant.name for mutant in made]
    results = {mutant.name: mutant.edit.applied(text) for mutant in made}
    assert len(set(results.values())) == len(made)
    assert results['x.py:5: "b - 1" -> "1 - b"'] == text.replace("return b - 1", "return 1 - b")


def test_the_generator_reads_cuda() -> None:
    """Comments, templates and preprocessor lines are left as they are."""
    text = "#define N 3\ntemplate <bool EVEN>\nint64 f(int a) {  // a < 1\n    if (a < 1) return __fsub_rn(a, 2);\n}\n"
    found = {mutant.name.removeprefix("x.cuh:") for mutant in generator.generated("x.cuh", text)}
    assert {'4: "<" -> "<="', '3: "int64" -> "int"', '4: "a, 2" -> "2, a"', '4: "a < 1" -> "(a < 1) || true"'} <= found
    assert not [name for name in found if name.startswith(("1:", "2:"))]


def test_a_child_that_hangs_or_dies_is_reported() -> None:
    """Its parent continues."""
    assert children.in_child(lambda: 7, 60) == 7
    with pytest.raises(children.Ended, match="more than 1 seconds"):
        children.in_child(lambda: time.sleep(60), 1)
    with pytest.raises(children.Ended, match="ended with 3"):
        children.in_child(lambda: os._exit(3), 60)


@pytest.mark.slow(smoke=False)
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


@pytest.mark.slow(smoke=False)
def test_without_the_oracle_a_wrong_front_end_survives() -> None:
    """A backend compared with the reference under the same front end cannot see its faults."""
    for name in ("betas swapped", "rate twice", "decay forgotten"):
        assert mutation_testing.try_mutant(named(name), oracle=False, patience=2).rejected_by is None
