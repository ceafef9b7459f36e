"""``nox -s versions -- 3.12 2.13.0``: try one Python with one torch, as a user installs them; print a row of a table.

The wheels are built and installed in an empty environment that does not see the checkout. There README's example, the
smallest profile of the conformance suite on each backend and the tests of ``lionbits`` run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import nox.project
from pythons import SUPPORTED, interpreter
from wheels import PRIVATE, ROOT, build, projects

#: Backends, each with the variables that let it run on a CPU.
BACKENDS = {
    "reference": {},
    "cpp": {},
    "triton": {"TRITON_INTERPRET": "1"},
    "cupy": {"LIONBITS_CUPY_EMULATE": "1"},
}
EXTRAS = {"lionbits": "[safetensors]", "lionbits-cupy": "[emulate]"}
WORKERS = ("--numprocesses=auto", "--maxprocesses=4", "-p", "no:cacheprovider")
SUITE = ("-m", "pytest", "--pyargs", "lionbits_conformance.suite", "--profile", "smoke", *WORKERS)

#: Prints the version of CUDA that torch was built for, or None.
CUDA = "import torch; print(torch.version.cuda)"
#: Compiles the CUDA kernels of three plans for sm_90, anew, and prints by which NVRTC.
KERNELS = """
import torch
from lionbits_cupy import build, source
from lionbits_reference.spec import Format, Plan
for bits in (32, 8, 4):
    build.build(source.source(Plan(torch.bfloat16, torch.bfloat16, Format.of(bits))), 90)
print("NVRTC {}.{}".format(*build.version()))
"""
#: Seconds that those may take. NVRTC takes about one for each.
PATIENCE = 120
#: Prints torch's version, and where lionbits was imported from.
IMPORTED = "import lionbits, torch; print(torch.__version__, lionbits.__file__)"
#: Prints why a backend cannot run on the CPU, or nothing.
REASON = "import sys, torch; from lionbits import select; print(select.diagnose(sys.argv[1], torch.device('cpu')))"


class Environment(NamedTuple):
    """An environment with the wheels in it, and the duration of its installation."""

    folder: Path
    seconds: float

    @property
    def python(self) -> Path:
        """The interpreter."""
        return Path(sysconfig.get_path("scripts", vars={"base": str(self.folder)}), "python")

    @property
    def gigabytes(self) -> float:
        """Size of all files."""
        return sum(file.lstat().st_size for file in self.folder.rglob("*") if not file.is_dir()) / 1e9

    def run(
        self, *arguments: object, where: Path, timeout: float | None = None, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the interpreter in a folder, without the settings of this shell that concern lionbits."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
        words = [str(word) for word in (self.python, *arguments)]
        environment = kept | {"OMP_NUM_THREADS": "1"} | dict(variables or {})
        return subprocess.run(
            words, capture_output=True, text=True, check=False, env=environment, cwd=where, timeout=timeout
        )


def wheels(out: Path) -> tuple[list[str], list[Path]]:
    """Build every distribution of this repository; return pip's requirements, and the folders with the wheels."""
    shutil.rmtree(out, ignore_errors=True)
    found = projects()
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda folder: build(folder, out / folder.name), found))
    wanted = [f"{each['name']}{EXTRAS.get(each['name'], '')}=={each['version']}" for each in found.values()]
    return wanted, [wheel.parent for wheel in made]


def installed(folder: Path, python: Path, torch: str, wanted: Sequence[str], found_in: Sequence[Path]) -> Environment:
    """Make an environment with the pip of that Python, and install torch, the wheels and the tools of the tests.

    Raises:
        SystemExit: pip failed; with all it printed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", folder], check=True)
    start = time.monotonic()
    groups = nox.project.dependency_groups(nox.project.load_toml(ROOT / "pyproject.toml"), "test", "peers")
    links = [argument for place in found_in for argument in ("--find-links", place)]
    pip = ("-m", "pip", "install", "--quiet", *links)
    made = Environment(folder, 0)
    done = made.run(*pip, f"torch=={torch}" if torch else "torch", *wanted, *groups, where=folder)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    extra = "cuda12" if made.run("-c", CUDA, where=folder).stdout.startswith("12.") else "cuda13"
    made.run(*pip, f"lionbits-cupy[{extra}]", where=folder)  # where CuPy has no wheels, :func:`kernels` says so
    return Environment(folder, time.monotonic() - start)


def example(environment: Environment, empty: Path) -> str:
    """Run the first Python block of README, having checked that the installed packages are imported."""
    where = environment.run("-I", "-c", IMPORTED, where=empty)
    assert str(environment.folder) in where.stdout, where.stdout + where.stderr
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[:1]
    done = environment.run("-I", "-c", code, where=empty)
    return "works" if not done.returncode else f"fails: {done.stderr.strip().splitlines()[-1]}"


def suite(environment: Environment, backend: str, empty: Path) -> str:
    """Run the smallest profile of the conformance suite on a backend, if it can run here."""
    variables = BACKENDS[backend]
    reason = environment.run("-c", REASON, backend, where=empty, variables=variables).stdout.strip()
    if reason:
        return f"cannot run: {reason}"
    return summary(
        environment.run(*SUITE, "--backend", backend, where=empty, variables=variables), empty / f"{backend}.log"
    )


def kernels(environment: Environment, empty: Path) -> str:
    """Compile CUDA kernels, as a GPU's first step does, by the NVRTC that torch requires or else the newest."""
    try:
        done = environment.run("-c", KERNELS, where=empty, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return f"fails: not compiled after {PATIENCE} s"
    return done.stdout.strip() if not done.returncode else f"fails: {done.stderr.strip().splitlines()[-1]}"


def front_end(environment: Environment, empty: Path) -> str:
    """Run the tests of ``lionbits`` from the checkout, on what was installed."""
    tests = ("packages/lionbits/tests", "--ignore=packages/lionbits/tests/ecosystem", "--smoke")
    variables = {name: value for backend in BACKENDS.values() for name, value in backend.items()}
    script = environment.python.with_name("pytest")  # unlike -m pytest it does not put this folder on the path
    return summary(environment.run(script, *tests, *WORKERS, where=ROOT, variables=variables), empty / "tests.log")


def summary(done: subprocess.CompletedProcess[str], log: Path) -> str:
    """Return pytest's last line without its decoration, having kept all of its output in a file."""
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    lines = done.stdout.strip().splitlines() or [f"ended with {done.returncode}"]
    return re.sub(r" in [\d.]+s.*| warnings?$", "", lines[-1].strip("= "))


def main() -> None:
    """Build, install, try; exit with 1 if anything fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", choices=SUPPORTED, help="version of the interpreter, found on the path or in pyenv")
    parser.add_argument("torch", nargs="?", default="", help="version; the newest that pip finds if none is named")
    parser.add_argument("--work", type=Path, required=True, help="a folder for wheels, the environment and logs")
    parser.add_argument("--keep", action="store_true", help="leave the environment, which is gigabytes")
    args = parser.parse_args()
    python = interpreter(args.python)
    if python is None:
        raise SystemExit(f"there is no Python {args.python} on the path, and none of pyenv's")
    work: Path = args.work.resolve() / f"{args.python}-{args.torch or 'newest'}"
    empty = work / "logs"
    empty.mkdir(parents=True, exist_ok=True)

    environment = installed(work / "environment", python, args.torch, *wheels(work / "dist"))
    torch = environment.run("-c", IMPORTED, where=empty).stdout.split()[0]
    row = {
        "Python": args.python,
        "torch": torch,
        "installs": f"{environment.gigabytes:.1f} GB, {environment.seconds:.0f} s",
        "README's example": example(environment, empty),
    }
    for backend in BACKENDS:
        row[backend] = suite(environment, backend, empty)
        print(f"{backend}: {row[backend]}", flush=True)
    row["CUDA kernels, compiled"] = kernels(environment, empty)
    row["tests of lionbits"] = front_end(environment, empty)
    if not args.keep:
        shutil.rmtree(work / "environment")
    print(f"Logs are in {empty}\n")
    for cells in (row, dict.fromkeys(row, "---"), row.values()):
        print(f"| {' | '.join(cells)} |")
    if any("fail" in cell or "error" in cell for cell in row.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
