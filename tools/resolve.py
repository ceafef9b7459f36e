"""``nox -s constraints``: let pip resolve constraints.txt on every Python of this machine, with every torch supported.

pip reads metadata only, and installs nothing. What it resolves is all that any session of the noxfile installs at once.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import nox.project
from pythons import SUPPORTED, interpreter
from wheels import ROOT, ours, projects

CONSTRAINTS = ROOT / "constraints.txt"

#: Python 3.10 is for users of the packages: the tools themselves need 3.11.
PYTHONS = SUPPORTED[1:]

#: The last release of each minor version of torch that is supported; empty: the newest that pip finds.
TORCHES = ("2.9.1", "2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1", "")


class Case(NamedTuple):
    """A Python, and the torch that takes the place of the pinned one."""

    python: str
    torch: str


def requirements() -> list[str]:
    """Return all that the dependency groups and the packages require, but for the packages of this repository."""
    project = nox.project.load_toml(ROOT / "pyproject.toml")
    found = set(nox.project.dependency_groups(project, *project["dependency-groups"]))
    for metadata in projects().values():
        extras = metadata.get("optional-dependencies", {})
        found.update(metadata["dependencies"], *(extra for name, extra in extras.items() if name != "cuda12"))
    return sorted(requirement for requirement in found if not ours(requirement))


def pins() -> dict[str, str]:
    """Return the version of each package that constraints.txt pins.

    Raises:
        SystemExit: a line pins what no pyproject.toml names.
    """
    found = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8")))
    named = {_name(requirement) for requirement in requirements()}
    if unnamed := [name for name in found if _name(name) not in named]:
        raise SystemExit(f"constraints.txt pins {', '.join(unnamed)}, which no pyproject.toml of this repository names")
    return found


def _name(requirement: str) -> str:
    matched = re.match(r"[\w.-]+", requirement)
    assert matched, requirement
    return re.sub(r"[-_.]+", "-", matched[0]).lower()


def resolve(case: Case) -> tuple[bool, str]:
    """Return whether pip found versions for a case, and what it found, or its complaint."""
    wanted = {**pins(), "torch": case.torch}
    lines = [f"{name}=={version}" for name, version in wanted.items() if version]
    python = interpreter(case.python)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("\n".join(lines), encoding="utf-8")
        command = (
            *(sys.executable, "-m", "pip", "--python", str(python), "install", "--dry-run", "--ignore-installed"),
            *("--quiet", "--report", "-", "--constraint", str(constraints), *requirements()),
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return False, done.stdout + done.stderr
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(done.stdout)["install"]}
    shown = ("torch", "triton", "nvidia-cuda-nvrtc", "numpy")
    return True, ", ".join(f"{name} {found[name]}" for name in shown if name in found)


def cases(every_torch: bool) -> Iterator[Case]:
    """Yield each Python found with the pinned torch, and if asked the newest of them with every other torch."""
    found = [version for version in PYTHONS if interpreter(version)]
    pinned = pins()["torch"]
    yield from (Case(version, pinned) for version in found)
    if every_torch:
        yield from (Case(found[-1], torch) for torch in TORCHES if torch != pinned)


def main() -> None:
    """Resolve all cases and print a row for each; exit with an error if pip finds no versions for one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every-torch", action="store_true", help="on the newest Python, each torch that is supported")
    tried = list(cases(parser.parse_args().every_torch))
    failed = []
    with ThreadPoolExecutor(2) as pool:
        for case, (good, text) in zip(tried, pool.map(resolve, tried), strict=True):
            asked = f"torch {case.torch}" if case.torch else "the newest torch"
            print(f"Python {case.python}, {asked}: {text if good else 'no versions satisfy all'}", flush=True)
            print("" if good else text, end="", file=sys.stderr)
            failed += [] if good else [case]
    if failed:
        raise SystemExit(f"constraints.txt does not resolve in {len(failed)} of {len(tried)} cases")


if __name__ == "__main__":
    main()
