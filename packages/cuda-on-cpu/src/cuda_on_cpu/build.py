"""Building a library from a file of CUDA C++: g++, a generated entry point, a cache by content."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

INCLUDE = Path(__file__).parent / "include"

#: Where libraries are kept: this variable, or a folder of the user's cache.
CACHE = "CUDA_ON_CPU_CACHE"

#: Each operation rounds once; two libraries share no variables, not even those of templates.
FLAGS = (
    *("-std=c++17", "-O2", "-g", "-ffp-contract=off", "-fno-strict-aliasing", "-shared", "-fPIC"),
    *("-fvisibility=hidden", "-fno-gnu-unique", "-Wno-unknown-pragmas", "-Wno-attributes"),
)

SANITIZERS = {
    "address": ("-fsanitize=address", "-fno-omit-frame-pointer"),
    "undefined": ("-fsanitize=undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all", "-static-libubsan"),
}


class CompileError(RuntimeError):
    """The C++ compiler refused the source; its own words follow."""


def obstacle() -> str:
    """Empty, or the reason why nothing can be built here."""
    if sys.platform != "linux":
        return f"kernels run on the CPU on Linux only, not on {sys.platform}"
    try:
        _compiler()
    except CompileError as error:
        return str(error)
    return ""


def library(
    file: Path,
    kernels: Sequence[str],
    variables: Sequence[str],
    include: Sequence[Path],
    define: Mapping[str, str],
    sanitize: Sequence[str],
) -> Path:
    """The library of these kernels, built unless it is in the cache.

    Raises:
        CompileError: there is no compiler, or it refuses the source.
        ValueError: a sanitizer that is not known.
    """
    if unknown := set(sanitize) - set(SANITIZERS):
        raise ValueError(f"sanitize={tuple(sanitize)!r}: {sorted(unknown)} must be of {sorted(SANITIZERS)}")
    flags = [*FLAGS, *_architecture(), *(f"-D{name}={value}" for name, value in define.items())]
    flags += [flag for name in sanitize for flag in SANITIZERS[name]]
    flags += [f"-I{folder}" for folder in (INCLUDE, *include)]
    text = _entry_point(file, kernels, variables)
    whole = _run([*flags, "-E", "-x", "c++", "-"], text)  # with all that is included
    parts = [whole, (INCLUDE / "runtime.cpp").read_text(), (INCLUDE / "fibers.h").read_text(), *flags, *_compiler()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    kept = _folder() / f"{file.stem}-{key}.so"
    if not _is_whole(kept):
        _compile(text, flags, kept)
    return kept


def _entry_point(file: Path, kernels: Sequence[str], variables: Sequence[str]) -> str:
    """The source as it is, and behind it what Python looks for."""
    entries = [f'    CUDA_ON_CPU_KERNEL("{name}", {name}),' for name in kernels]
    getters = [
        f'extern "C" __attribute__((visibility("default"))) void* cuda_on_cpu_variable_{i}() {{ return &{name}; }}'
        for i, name in enumerate(variables)
    ]
    lines = ['#include "cuda_on_cpu.h"', f'#include "{file.resolve()}"', "CUDA_ON_CPU_KERNELS = {", *entries, "};"]
    return "\n".join([*lines, *getters]) + "\n"


def _compile(text: str, flags: Sequence[str], kept: Path) -> None:
    """Build in a folder of its own; other processes see the whole library or none."""
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix="building-") as folder:
        source, built, digest = (Path(folder) / name for name in ("entry.cpp", "built.so", "digest"))
        source.write_text(text)
        _run([*flags, str(source), str(INCLUDE / "runtime.cpp"), "-o", str(built)])
        digest.write_text(_digest(built))
        built.replace(kept)
        digest.replace(kept.with_suffix(".sha256"))


def _run(arguments: Sequence[str], text: str | None = None) -> str:
    command = [_compiler()[0], *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def _is_whole(kept: Path) -> bool:
    """Whether the file is what was built: a library that was cut off would bring the process down."""
    try:
        return kept.with_suffix(".sha256").read_text() == _digest(kept)
    except OSError:
        return False


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@functools.cache
def _compiler() -> tuple[str, str]:
    """The compiler and its version."""
    name = os.environ.get("CXX", "g++")
    found = shutil.which(name)
    if found is None:
        raise CompileError(f"there is no C++ compiler {name!r} on the path: install g++ (9 or later), or set CXX")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    return found, version.splitlines()[0]


@functools.cache
def _architecture() -> tuple[str, ...]:
    """Vectors of 32 bytes where this machine has them."""
    if platform.machine() != "x86_64":
        return ()
    try:
        known = "avx2" in Path("/proc/cpuinfo").read_text()
    except OSError:
        known = False
    return ("-march=x86-64-v3",) if known else ()


@functools.cache
def _folder() -> Path:
    """Where libraries are kept; a temporary folder of this process where nothing can be written there."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get(CACHE) or Path(home) / "cuda-on-cpu")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="cuda-on-cpu-"))
