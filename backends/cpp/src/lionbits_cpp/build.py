"""Build the library: ``python -m lionbits_cpp.build``. It needs a C++17 compiler, and takes seconds.

It imports nothing but the standard library, as it also runs while the package is built.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(__file__).parent / "cpp" / "kernels.cpp"
FOLDER = Path(__file__).parent / "builds"

#: Compilers that are looked for on the path. The variable ``CXX`` names another, with options if need be.
COMPILERS = ("g++", "clang++", "c++")

#: Instruction sets, for each machine.
X86: dict[str, tuple[str, ...]] = {
    "x86-64": ("-march=x86-64",),
    "x86-64-v3": ("-march=x86-64-v3",),
    "x86-64-v4": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
}
AARCH64: dict[str, tuple[str, ...]] = {"aarch64": ("-march=armv8-a",)}

#: One rounding for each operation, and no assumption that a number is finite.
EXACT = ("-ffp-contract=off", "-fno-fast-math", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing")

OPTIONS = ("-std=c++17", "-O3", *EXACT, "-fopenmp-simd", "-fvisibility=hidden", "-fPIC", "-shared", "-pthread")


def builds(machine: str) -> dict[str, tuple[str, ...]]:
    """The builds for a machine, as ``platform.machine()`` calls it: names, and what each adds to ``OPTIONS``."""
    return X86 if machine.lower() in ("x86_64", "amd64") else AARCH64 if machine.lower() in ("aarch64", "arm64") else {}


def compiler() -> list[str]:
    """The command of the compiler: ``CXX``, else the first that is installed; empty where there is none."""
    chosen = os.environ.get("CXX", "").split()
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    return chosen or ([found] if found else [])


def build(folder: Path = FOLDER, machine: str | None = None, options: tuple[str, ...] = ()) -> list[Path]:
    """Build the library for every instruction set of a machine; a file has its name from the moment it is complete.

    Args:
        folder: where the libraries go.
        machine: as ``platform.machine()`` calls it; None: this one.
        options: further ones of the compiler, such as sanitizers.

    Raises:
        FileNotFoundError: there is no compiler. RuntimeError: it fails; says how.
    """
    command = compiler()
    if not command:
        raise FileNotFoundError(f"no C++ compiler: none of {', '.join(COMPILERS)} is on the path, and CXX names none")
    folder.mkdir(parents=True, exist_ok=True)

    def one(name: str, target: tuple[str, ...]) -> Path:
        path, partial = folder / f"{name}.so", folder / f"{name}.{os.getpid()}.part"
        linked = ["-static-libgcc", "-static-libstdc++", "-ldl"]
        line = [*command, *OPTIONS, *target, *options, str(SOURCE), "-o", str(partial), *linked]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(line)} failed:\n{done.stderr.strip()}")
        return partial.replace(path)

    targets = builds(machine or platform.machine())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [*pool.map(one, targets.keys(), targets.values())]


def main() -> int:
    """Build what the command line asks for, and print the files; the result is the exit code."""
    parser = argparse.ArgumentParser("lionbits_cpp.build", description="Build the C++ library of lionbits-cpp.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the libraries go (default: the package's)")
    parser.add_argument("--machine", help="such as aarch64, with CXX naming a compiler for it (default: this one)")
    parser.add_argument("options", nargs="*", help="further options of the compiler, after --")
    given = parser.parse_args()
    try:
        made = build(given.folder, given.machine, tuple(given.options))
    except (FileNotFoundError, RuntimeError) as error:
        parser.error(str(error))
    print("\n".join(map(str, made)) or f"there is no build for {given.machine or platform.machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
