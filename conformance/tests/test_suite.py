"""The suite as other people meet it: by the name of a backend, through pytest, from a checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOY = '''
"""A third party's backend. It borrows the reference's functions, which an honest one would not."""
from lionbits_reference import absmax, aligned, decode, encode, prepare, step, supports
name = "toy"
'''


def run_suite(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the suite with modules of ``folder`` importable."""
    path = os.pathsep.join([str(folder), *sys.path])
    command = [sys.executable, "-m", "lionbits_conformance", "-p", "no:cacheprovider", "-q", *arguments]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """A folder with a toy backend, and with the same toy broken."""
    (tmp_path / "lionbits_toy.py").write_text(TOY)
    broken = TOY.replace('name = "toy"', 'name = "broken"') + (
        "def step(prepared, grads, hyper, scalars):\n"
        "    import lionbits_reference\n"
        "    lionbits_reference.step(prepared, grads, hyper, scalars)\n"
        "    for slot in prepared.slots:\n"
        "        slot.param.mul_(1.5)\n"
    )
    (tmp_path / "lionbits_broken.py").write_text(broken)
    return tmp_path


def test_a_third_party_backend_is_found_by_name_and_passes(toys: Path) -> None:
    """``lionbits_toy`` on the path is all it takes; the header says what is checked."""
    done = run_suite(toys, "--backend", "toy", "-k", "step_equals_reference or backend_equals_reference", "-v")
    assert done.returncode == 0, done.stdout
    assert "lionbits conformance: backend toy on cpu" in done.stdout


def test_a_broken_backend_fails_readably(toys: Path) -> None:
    """The message has the property, the plan, the first difference in hexadecimal, and code that runs it again."""
    done = run_suite(toys, "--backend", "broken", "-k", "step_equals_reference and 32-float32")
    assert done.returncode == 1, done.stdout
    again = ("to run it again", "properties.step_equals_reference(select.load('broken'), Case(plan=Plan(")
    for text in ("property step_equals_reference is broken for Plan(", "got 0x", "first element at 64", *again):
        assert text in done.stdout


def test_known_gaps_are_expected_and_checked(toys: Path) -> None:
    """A listed gap does not fail the run; one that names no test, or passes, or has no reason, does."""
    chosen = ("--backend", "broken", "-k", "step_equals_reference and 32-float32")
    gaps = toys / "gaps.txt"
    gaps.write_text("# known\ntest_call[step_equals_reference-32-float32]  the toy multiplies\n")
    done = run_suite(toys, *chosen, "--gaps", str(gaps), "-rx")
    assert done.returncode == 0, done.stdout
    assert "the toy multiplies" in done.stdout
    assert run_suite(toys, *chosen, "--gaps", str(gaps), "--backend", "toy").returncode == 1
    gaps.write_text("test_of_nothing  because\n")
    assert "test_of_nothing" in run_suite(toys, *chosen, "--gaps", str(gaps)).stderr
    gaps.write_text("test_call[step_equals_reference-32-float32]\n")
    assert "has no reason" in run_suite(toys, *chosen, "--gaps", str(gaps)).stderr


def test_it_runs_from_the_root_of_the_checkout() -> None:
    """Where warnings are errors, too."""
    command = [sys.executable, "-m", "lionbits_conformance", "-p", "no:cacheprovider", "-q", "-k", "e0m1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_missing_backend_is_named(toys: Path) -> None:
    """A misspelt name says so."""
    done = run_suite(toys, "--backend", "tow", "-k", "step_equals_reference and 32-float32")
    assert done.returncode == 1
    assert "there is no module lionbits_tow" in done.stdout


def test_the_backend_of_the_docs_passes(tmp_path: Path) -> None:
    """What docs/writing-a-backend.md begins with is a whole backend for its plan: the file as it stands there.

    What other plans need is skipped. Most tests of plans that it refuses are left out, for the time they take.
    """
    page = (Path(__file__).parents[2] / "docs" / "writing-a-backend.md").read_text()
    code = next(block for block in page.split("```python\n") if "def supports(plan, device):\n    if" in block)
    (tmp_path / "lionbits_mine.py").write_text(code.split("```")[0])
    done = run_suite(
        tmp_path, "--backend", "mine", "-k", "simplest or 32-float32 or twenty or state_machine or supports or its"
    )
    assert done.returncode == 0, done.stdout
    assert "skipped" in done.stdout.splitlines()[-1]


FAULTS = {  # what is written below the toy, and what is said of it
    "a name of another": ('name = "tow"', "the module lionbits_faulty has name = 'tow'"),
    "nothing returned": ("def encode(format, momentum): ...", "encode returned None; it must be a dict of the state"),
    "no tensor": ("def decode(format, state, shape): return 0", "momentum: got 0, want a tensor: torch.float32"),
    "a wrong dtype": (
        "def absmax(*call): return lionbits_reference.absmax(*call).double()",
        "absmax: got torch.float64 of shape (1,), want torch.float32 of shape (1,)",
    ),
    "nothing served": (
        "def supports(plan, device): return 'later'",
        "supports refuses every plan on cpu; of the plainest it says: later",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_where_the_simplest_call_fails_nothing_else_is_tried(tmp_path: Path, fault: str) -> None:
    """A first attempt hears what is wrong within seconds, not after every failure was shrunk."""
    code, says = FAULTS[fault]
    source = TOY.replace('name = "toy"', 'name = "faulty"') + f"import lionbits_reference\n{code}\n"
    (tmp_path / "lionbits_faulty.py").write_text(source)
    done = run_suite(tmp_path, "--backend", "faulty")
    assert done.returncode == 1, done.stdout
    assert says in done.stdout
    assert "the simplest calls fail, so nothing harder was tried" in done.stdout
    assert "test_call[" not in done.stdout


NARROW = """
def supports(plan, device):
    want = ("torch.float32", "torch.bfloat16", 4, 64, "mask", "propagate")
    is_ = (str(plan.param_dtype), str(plan.grad_dtype), plan.format.bits, plan.format.block_size)
    return "" if (*is_, plan.caution, plan.nonfinite) == want else "one kind of plan, which chance hardly ever draws"
"""


def test_a_backend_that_serves_next_to_nothing_is_judged_on_that(tmp_path: Path) -> None:
    """Plans that are refused are replaced, not waited for; where there is no other, the test is skipped."""
    (tmp_path / "lionbits_toy.py").write_text(TOY + NARROW)
    chosen = "step_equals_reference or twenty or every_code"
    done = run_suite(tmp_path, "--backend", "toy", "-k", chosen, "-rs")
    assert done.returncode == 0, done.stdout
    assert "7 passed" in done.stdout, done.stdout
    assert "one kind of plan, which chance hardly ever draws" in done.stdout
