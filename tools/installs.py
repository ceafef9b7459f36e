"""``nox -s build``: make every distribution, install the wheels as users would, and check that they work there.

Each way to install has an empty environment of its own; torch alone is shared by all of them and kept for the next
time, as it is most of the download. ``nox -s build -- --torch 2.9.1`` tries another one.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

from wheels import ROOT, build, faults, lowest, ours, projects, run

SMOKE = Path(__file__).with_name("smoke.py")
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
ALL = ("cli", "cpp", "cupy", "safetensors", "triton")
IMPORTS = {"safetensors": "safetensors"}
EVERY = ("lionbits[all]", "lionbits-cupy[emulate]", "lionbits-conformance", "lionbits-bench")


class Way(NamedTuple):
    """A way to install: pip's arguments, the parts that must work then, and whether at the lowest versions allowed."""

    wanted: tuple[str, ...]
    extras: tuple[str, ...] = ()
    oldest: bool = False


WAYS = (
    Way(("lionbits",)),
    *(Way((f"lionbits[{extra}]",), (extra,)) for extra in ALL),
    Way(("lionbits[all]",), ALL),
    Way(EVERY, (*ALL, "emulate")),
    Way(EVERY, (*ALL, "emulate"), oldest=True),
)

COLUMNS = ("installed", "brings", "adds", "steps equal on", "result")


def room(path: Path, *shown: Path) -> Path:
    """Make an environment that has nothing but the packages of those ``shown``; return its Python."""
    shutil.rmtree(path, ignore_errors=True)
    run(sys.executable, "-m", "venv", "--without-pip", path)
    (packages(path) / "shown.pth").write_text("".join(f"{packages(other)}\n" for other in shown))
    return Path(sysconfig.get_path("scripts", vars={"base": str(path)})) / "python"


def packages(path: Path) -> Path:
    """Return the folder of an environment's installed packages."""
    return Path(sysconfig.get_path("purelib", vars={"base": str(path), "platbase": str(path)}))


def install(python: Path, constraints: Path, *wanted: str) -> None:
    """Install into an environment by another's pip; imported modules are compiled on import, the others need not be."""
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-compile", "--constraint", constraints, *wanted)


def torch_room(path: Path, constraints: Path, version: str) -> Path:
    """Return an environment with torch alone, made anew only if another version is asked for."""
    note = path / "torch-version"
    if not note.exists() or note.read_text() != version:
        install(room(path), constraints, "torch")
        note.write_text(version)
    return path


def tried(way: Way, number: int, work: Path, base: Path) -> tuple[str, ...]:
    """Install one way into an environment of its own and run its checks; return a row of the table."""
    start, path = time.monotonic(), work / f"room-{number}"
    python = room(path, base)
    install(python, work / ("oldest.txt" if way.oldest else "tested.txt"), *way.wanted)
    added = {found.name: found.version for found in distributions(path=[str(packages(path))])}
    size = sum(file.stat().st_size for file in packages(path).rglob("*") if file.is_file()) / 1e6
    good = run(python, "-I", SMOKE, *way.extras, OMP_NUM_THREADS="1").splitlines()[-1]
    if not way.extras:
        follow_advice(python, work / "torch.txt")
    shutil.rmtree(path)
    print(f"{' '.join(way.wanted)}: works", flush=True)
    return (
        " ".join(way.wanted) + (", the oldest allowed" if way.oldest else ""),
        ", ".join(f"{name} {version}" for name, version in sorted(added.items()) if not ours(name)) or "nothing else",
        f"{size:,.1f} MB",
        good,
        f"works, {time.monotonic() - start:.0f} s",
    )


def follow_advice(python: Path, constraints: Path) -> None:
    """Install each extra by the command that messages print, in this checkout, and import its packages."""
    for extra in ALL:
        command = run(python, "-I", "-c", f"from lionbits import install; print(install.command({extra!r}))")
        program, verb, *words = shlex.split(command.removesuffix(" (in a checkout of lionbits)\n"))
        assert (program, verb) == ("pip", "install"), command
        install(python, constraints, *words)
        run(python, "-I", "-c", f"import {IMPORTS.get(extra, f'lionbits_{extra}')}")


def main() -> None:
    """Build and check the wheels, install and try each way, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    pinned = re.findall(r"(?m)^torch==(.*)$", PINS)[0]
    parser.add_argument("--torch", default=pinned, help=f"another version than {pinned}, as pip finds it")
    parser.add_argument("--only", help="the ways whose text holds this, say [triton]")
    parser.add_argument("--work", type=Path, required=True, help="a folder that is kept between calls")
    args = parser.parse_args()
    work: Path = args.work.resolve()
    shutil.rmtree(work / "dist", ignore_errors=True)

    found = projects()
    with ThreadPoolExecutor(2) as pool:
        made = dict(zip(found, pool.map(lambda folder: build(folder, work / "dist" / folder.name), found), strict=True))
    if wrong := [fault for folder, wheel in made.items() for fault in faults(wheel, found[folder])]:
        raise SystemExit("\n".join(wrong))
    run(sys.executable, "-m", "twine", "check", "--strict", *(work / "dist").glob("*/*.*"))
    print(f"{len(made)} distributions: sdist, wheel, metadata and description are in order", flush=True)

    here = [f"{found[folder]['name']} @ {wheel.as_uri()}" for folder, wheel in made.items()]
    torch = f"torch=={args.torch}"
    others = [line for line in PINS.splitlines() if not line.startswith("torch==")]
    (work / "torch.txt").write_text("\n".join([torch, *others]))
    (work / "tested.txt").write_text("\n".join([torch, *others, *here]))
    (work / "oldest.txt").write_text("\n".join([torch, *lowest(list(made.values())), *here]))
    base = torch_room(work / "torch", work / "torch.txt", args.torch)
    ways = [way for way in WAYS if not args.only or args.only in " ".join(way.wanted)]
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(partial(tried, work=work, base=base), ways, range(len(ways))))
    print(f"Python {sys.version.split()[0]}, {torch}, {sys.platform}. CuPy's kernels run where they are emulated.\n")
    for row in (COLUMNS, ("---",) * len(COLUMNS), *rows):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
