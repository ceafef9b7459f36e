"""Every job that anyone runs here, in one file.

`nox -l` lists the sessions, `nox` does all that a change has to pass in one environment, `nox -s tests -- -k rounding`
hands the rest of the line to pytest. Each session has its own virtual environment under `.nox/`, made once and reused;
`nox -R` also skips looking whether its packages are up to date.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"  # pip, so that constraints.txt and your pip settings count
nox.options.reuse_venv = "yes"
nox.options.sessions = ["ci"]

PROJECT = nox.project.load_toml("pyproject.toml")

# The distributions of this repository, those that others need first.
FRONT_END = ("reference", "packages/lionbits")
SUITE = (*FRONT_END, "conformance")

# Backends, each with what it needs beyond the front end. The conformance suite tests each in a session of its own.
BACKENDS = {
    "reference": (),
    "cpp": ("backends/table", "backends/cpp"),
    "triton": ("backends/table", "backends/triton"),
    "cupy": ("backends/table", "packages/cuda-on-cpu", "packages/ptx-on-cpu", "backends/cupy"),
}

PACKAGES = (
    *("reference", "packages/lionbits[safetensors]", "packages/lionbits-cli", "conformance"),
    *dict.fromkeys(package for packages in BACKENDS.values() for package in packages),
    "packages/lionbits-bench",
)

# The picture of the README: four Lions from the same start, within a few minutes on two CPU cores.
PICTURES = Path("demo-out")
DEMO = (
    "--compare", "lion32", "lion8", "lion4", "qlion",
    "--steps", "350", "--context", "96", "--eval-every", "25", "--out", str(PICTURES),
)  # fmt: skip


# One thread per worker: small tensors gain nothing from more, and the workers stop fighting. Triton interprets its
# kernels and those in CUDA C++ are emulated, so that they run without a GPU.
ON_THE_CPU = {
    "OMP_NUM_THREADS": "1",
    "TRITON_INTERPRET": "1",
    "LIONBITS_CUPY_EMULATE": "1",
}

# What `ci` leaves out of the suite in Triton's interpreter: whole runs with 16-bit parameters, whose calls it makes.
SHORT = ("-k", "not test_run or float32")

WORKERS = ("--numprocesses=auto", "--maxprocesses=4")

# Tests that the session `ecosystem` runs, and `tests` does not.
TRAINERS = "packages/lionbits/tests/ecosystem"


# Tests that the session `fuzz` runs; `tests` runs it with its own numbers, `ci` some of its cases.
FUZZ = "packages/lionbits/tests/test_load_fuzz.py"

# All versions, torch's above all: an environment downloads it once and keeps it.
PINNED = ("--constraint", "constraints.txt")


def install(session: nox.Session, *groups: str, packages: Sequence[str] = PACKAGES) -> None:
    """Install dependency groups of pyproject.toml and packages, editable, built by the environment itself."""
    session.install(*PINNED, *nox.project.dependency_groups(PROJECT, "editable", *groups))
    session.install(*PINNED, "--no-build-isolation", *editable(packages))  # isolated builds would take longer


def editable(packages: Sequence[str]) -> list[str]:
    """Return pip's arguments for these packages."""
    return [argument for package in packages for argument in ("--editable", package)]


@nox.session
def demo(session: nox.Session) -> None:
    """Train 32-, 8- and 4-bit Lion and QLion on real text and draw them side by side (CPU, minutes)."""
    install(session, packages=(*FRONT_END, *BACKENDS["cpp"], "packages/lionbits-cli"))
    session.run("lionbits", "train", *DEMO, *session.posargs)
    pictures = sorted(PICTURES.rglob("*.png"))
    if not pictures:
        session.error(f"the demo drew no picture under {PICTURES.resolve()}")
    session.log("The pictures are in")
    for picture in pictures:
        session.log(f"  {picture.resolve()}")


@nox.session
def ci(session: nox.Session) -> None:
    """Check what every change has to pass, in one environment: lint, constraints, docs, tests, conformance, trainers.

    Of slow tests it runs some cases: `tests` and `conformance` run all of them. A part that fails keeps no other from
    running.
    """
    install(session, "lint", "docs", "test", "cuda", "peers")
    parts: dict[str, Callable[[], None]] = {
        "lint": partial(run_lint, session),
        "constraints": partial(run_constraints, session),
        "docs": partial(run_docs, session, "build"),
        "tests": partial(run_tests, session, "--smoke", "--durations=20"),
        **{f"conformance({backend})": partial(run_suite, session, backend, "smoke") for backend in BACKENDS},
        "conformance(triton)": partial(run_suite, session, "triton", "smoke", *SHORT),
        "ecosystem": partial(run_ecosystem, session),  # the last, as the others have to do without its packages
    }
    failed = []
    for name, part in parts.items():
        begun = time.monotonic()
        try:
            part()
        except nox.command.CommandFailed:
            failed.append(name)
        session.log(f"{name} {'failed' if name in failed else 'passed'} after {time.monotonic() - begun:.0f} seconds")
    if failed:
        session.error(f"failed: {', '.join(failed)}")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests of every package; what follows `--` goes to pytest."""
    install(session, "test", "cuda", "peers")
    run_tests(session, *session.posargs)


def run_tests(session: nox.Session, *arguments: str) -> None:
    """Run all tests but those under trainers; with `--smoke`, some cases of slow ones."""
    session.run("pytest", *WORKERS, f"--ignore={TRAINERS}", *arguments, env=ON_THE_CPU)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Load 3,360 state dicts that were changed at random, in every class; `-- --seed 7 --cases 480` tries others.

    After a refusal everything is as it was, the next step too; what loads is good for more steps. A case is 70 of them.
    """
    parser = argparse.ArgumentParser(prog="nox -s fuzz --")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=48)
    chosen, arguments = parser.parse_known_args(session.posargs)
    install(session, "test", packages=FRONT_END)
    environment = {"LIONBITS_FUZZ_SEED": str(chosen.seed), "LIONBITS_FUZZ_CASES": str(chosen.cases)}
    session.run("pytest", FUZZ, *WORKERS, *arguments, env={**ON_THE_CPU, **environment})


@nox.session
def ecosystem(session: nox.Session) -> None:
    """Train under transformers, Lightning, accelerate, PEFT and DeepSpeed; run the examples (minutes)."""
    install(session, "test", packages=FRONT_END)
    run_ecosystem(session, *session.posargs)


def run_ecosystem(session: nox.Session, *arguments: str) -> None:
    """Add the trainers to the environment and run the tests under them."""
    session.install(*PINNED, *nox.project.dependency_groups(PROJECT, "ecosystem"))
    session.run("pytest", TRAINERS, *WORKERS, *arguments, env=ON_THE_CPU)


@nox.session
@nox.parametrize("backend", [nox.param(name, id=name) for name in BACKENDS])
def conformance(session: nox.Session, backend: str) -> None:
    """Run the conformance suite on a backend: every property, the oracle, the stateful test (profile ci; minutes)."""
    run_conformance(session, backend, "ci")


@nox.session
@nox.parametrize("backend", [nox.param(name, id=name) for name in BACKENDS])
def nightly(session: nox.Session, backend: str) -> None:
    """Take hours: 5,000 examples of each property, and what was found is kept in `.hypothesis`."""
    run_conformance(session, backend, "nightly")


def run_conformance(session: nox.Session, backend: str, profile: str) -> None:
    """Run the suite as any other backend's authors would; what follows `--` goes to pytest."""
    install(session, "test", packages=(*SUITE, *BACKENDS[backend]))
    run_suite(session, backend, profile, *session.posargs)


def run_suite(session: nox.Session, backend: str, profile: str, *arguments: str, **environment: str) -> None:
    """Run the suite in an environment that has all it needs; `cpp` on two threads."""
    threads = {"OMP_NUM_THREADS": "2"} if backend == "cpp" else {}
    session.run(
        *("pytest", "--pyargs", "lionbits_conformance.suite", "--backend", backend, "--profile", profile),
        *WORKERS,
        *arguments,
        env={**ON_THE_CPU, **threads, **environment},
    )


@nox.session
def sanitized(session: nox.Session) -> None:
    """Put the CUDA C++ kernels before the conformance suite under AddressSanitizer and UBSan (g++; minutes)."""
    install(session, "test", packages=(*SUITE, *BACKENDS["cupy"]))
    library = session.run("g++", "-print-file-name=libasan.so", silent=True, external=True)
    run_suite(
        session,
        "cupy",
        "dev",
        *session.posargs,
        LD_PRELOAD=str(library).strip(),
        ASAN_OPTIONS="detect_leaks=0",
        LIONBITS_CUPY_SANITIZE="address,undefined",
    )


@nox.session
def sanitized_cpp(session: nox.Session) -> None:
    """Put the C++ kernels of the CPU before the conformance suite under AddressSanitizer and UBSan (g++; minutes)."""
    install(session, "test", packages=(*SUITE, *BACKENDS["cpp"]))
    folder = Path(session.virtualenv.location, "sanitized").resolve()
    options = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g")
    session.run("python", "-m", "lionbits_cpp.build", "--folder", str(folder), "--", *options, env={"CXX": "g++"})
    library = session.run("g++", "-print-file-name=libasan.so", silent=True, external=True)
    for build in ("x86-64", "x86-64-v3"):
        run_suite(
            session,
            "cpp",
            "dev",
            *session.posargs,
            LD_PRELOAD=str(library).strip(),
            ASAN_OPTIONS="detect_leaks=0",
            LIONBITS_CPP_BUILD=str(folder / f"{build}.so"),
        )


@nox.session
def builds_cpp(session: nox.Session) -> None:
    """Put each build of the C++ kernels that this CPU runs before the conformance suite (minutes)."""
    install(session, "test", packages=(*SUITE, *BACKENDS["cpp"]))
    names = "from lionbits_cpp import library; print(*library.names())"
    found = session.run("python", "-c", names, silent=True)
    for build in str(found).split():
        run_suite(session, "cpp", "dev", *session.posargs, LIONBITS_CPP_BUILD=build)


@nox.session
def kernels(session: nox.Session) -> None:
    """Print registers and instructions of every kernel, compiled for GPUs that need not be there (minutes)."""
    install(session, "cuda", packages=(*SUITE, *BACKENDS["triton"], *BACKENDS["cupy"], "packages/lionbits-bench"))
    for backend in ("triton", "cupy"):
        session.run("python", "-m", "lionbits_bench", "sass", "--backend", backend, *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Print which property rejects each wrong Lion, and after how many examples: all written ones, some generated ones.

    What follows `--` replaces that: `-- --profile dev --seed 3`, or `-- --generated table --sample 0` for all of a kind
    (hours). `tests` tries a fixed sample, and `ci` a twelfth of that.
    """
    install(session, "test", packages=(*SUITE, *BACKENDS["triton"], *BACKENDS["cupy"]))
    command = ("python", "-m", "lionbits_conformance.mutation_testing")
    if session.posargs:
        session.run(*command, *session.posargs, env=ON_THE_CPU)
        return
    session.run(*command, env=ON_THE_CPU)
    for target in ("reference", "front end", "table", "cupy", "triton"):
        session.run(*command, "--generated", target, env=ON_THE_CPU)


@nox.session
def vectors(session: nox.Session) -> None:
    """Check that the oracle would write the test vectors of the repository again, byte for byte."""
    install(session, packages=SUITE)
    session.run("python", "-m", "lionbits_conformance.vectors", "check")


@nox.session
def build(session: nox.Session) -> None:
    """Build every distribution, install the wheels in all combinations and see that they work (minutes)."""
    session.install(*PINNED, *nox.project.dependency_groups(PROJECT, "build"))
    work = Path(session.virtualenv.location, "installs")
    session.run("python", "tools/installs.py", "--work", str(work), *session.posargs)


@nox.session
def versions(session: nox.Session) -> None:
    """Try one Python with one torch, as a user installs them: `-- 3.12 2.13.0`, or `-- 3.12` for the newest (an hour).

    It builds the wheels and installs them in an empty environment, then runs README's example, the smallest profile of
    the conformance suite on each backend and the tests of `lionbits`, and prints a row of a table.
    """
    session.install(*PINNED, *nox.project.dependency_groups(PROJECT, "build"))
    work = Path(session.virtualenv.location, "versions")
    session.run("python", "tools/versions.py", "--work", str(work), *session.posargs)


@nox.session
def constraints(session: nox.Session) -> None:
    """Let pip resolve constraints.txt on every Python of this machine, and with every torch that is supported."""
    session.install(*PINNED, "nox")
    run_constraints(session, "--every-torch")


def run_constraints(session: nox.Session, *arguments: str) -> None:
    """Resolve; nothing is installed."""
    session.run("python", "tools/resolve.py", *arguments)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style (ruff), types (mypy strict), who imports whom (import-linter); change nothing."""
    install(session, "lint")
    run_lint(session)


def run_lint(session: nox.Session) -> None:
    """Run each of the tools."""
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/, each warning an error; `-- serve` shows it while you write."""
    session.install(*PINNED, *nox.project.dependency_groups(PROJECT, "docs"))
    run_docs(session, *(session.posargs or ["build"]))


def run_docs(session: nox.Session, *arguments: str) -> None:
    """Run mkdocs."""
    session.run("mkdocs", *arguments, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def dev(session: nox.Session) -> None:
    """Make `.venv`: every package, editable, and the tools of all sessions, for your editor and shell."""
    session.run("python", "-m", "venv", ".venv")
    requirements = nox.project.dependency_groups(PROJECT, "dev")
    session.run("python", "-m", "pip", "--python", ".venv", "install", *PINNED, *requirements, *editable(PACKAGES))
    session.log("It is .venv; on Linux and macOS, activate it with: source .venv/bin/activate")
