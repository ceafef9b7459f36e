"""Building of every distribution of this repository as sdist and wheel, and checks of their content."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

#: Prefixes of variables about this shell's checkout or settings, not about the installation.
PRIVATE = ("LIONBITS_", "PYTHON", "TRITON_")

STATED = ("License-Expression: Apache-2.0", "Requires-Python: >=3.10", "Keywords: ", "Classifier: Typing :: Typed")


def run(*command: object, **environment: str) -> str:
    """Return the output of a command. If it fails, exit with its output."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(PRIVATE)}
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=kept | environment, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}\nended with {done.returncode}")
    return done.stdout


def projects() -> dict[Path, dict[str, Any]]:
    """Return folder and ``[project]`` of every distribution here."""
    files = [ROOT / line for line in run("git", "ls-files", "*/pyproject.toml").splitlines()]
    return {file.parent: tomllib.loads(file.read_text(encoding="utf-8"))["project"] for file in files}


def ours(name: str) -> bool:
    """True if a distribution, or a requirement, is of this repository."""
    return name.startswith(("lionbits", "cuda-on-cpu", "ptx-on-cpu"))


def build(folder: Path, out: Path) -> Path:
    """Build an sdist in ``out``, and the wheel from it, which must equal the wheel from the checkout."""
    python = (sys.executable, "-m", "build", "--no-isolation", "--outdir")
    direct = out / "direct"
    run(*python, out, folder)
    run(*python, direct, "--wheel", folder)
    (wheel,) = out.glob("*.whl")
    if contents(wheel) != contents(direct / wheel.name):
        raise SystemExit(f"{folder}: the wheel made from its sdist is not the one made from the checkout")
    return wheel


def contents(wheel: Path) -> dict[str, bytes]:
    """Return name and content of every file in a wheel."""
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def faults(wheel: Path, project: dict[str, Any]) -> list[str]:
    """Return the faults of a wheel: it needs one import package, typed, its licence, its metadata, and no tests."""
    files = contents(wheel)
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    package = project["name"].replace("-", "_")
    found = [f"has {name}" for name in files if name.split("/")[0] not in (package, info)]
    found += [f"has {name}" for name in files if "/tests/" in name or "conftest" in name]
    found += [f"lacks {name}" for name in (f"{package}/py.typed", f"{info}/licenses/LICENSE") if name not in files]
    metadata = files[f"{info}/METADATA"].decode()
    found += [f"does not state {line!r}" for line in STATED if f"\n{line}" not in metadata]
    for sibling in re.findall(r"\nRequires-Dist: ((?:lionbits|cuda-on-cpu|ptx-on-cpu)[^;\s]*)", metadata):
        if not sibling.endswith(f"=={project['version']}") and not sibling.startswith("lionbits["):
            found.append(f"asks for {sibling} of any version")
    return [f"{wheel.name} {fault}" for fault in found]


def lowest(wheels: list[Path]) -> list[str]:
    """Return the lowest version that metadata allows of every requirement from elsewhere, but for torch."""
    bounds = set()
    for wheel in wheels:
        (metadata,) = (text.decode() for name, text in contents(wheel).items() if name.endswith("/METADATA"))
        bounds |= set(re.findall(r"\nRequires-Dist: ([\w-]+)>=([\w.]+)", metadata))
    return sorted(f"{name}=={bound}" for name, bound in bounds if name != "torch")
