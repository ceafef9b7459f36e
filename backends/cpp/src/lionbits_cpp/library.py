"""The library of this CPU: which of the builds beside this file it is."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from pathlib import Path

import torch

#: Chooses a build: its name, as ``x86-64-v3``, or the path of a library.
ENVIRONMENT = "LIONBITS_CPP_BUILD"

FOLDER = Path(__file__).parent / "builds"

#: For each of torch's names of what a CPU can do, the builds that it runs, best first.
X86 = {"AVX512": ("x86-64-v4", "x86-64-v3", "x86-64"), "AVX2": ("x86-64-v3", "x86-64")}

#: How to get a library that serves.
WAY_OUT = "With a C++ compiler (apt install g++), build it: python -m lionbits_cpp.build"


def names() -> tuple[str, ...]:
    """Names of the builds that this CPU runs, best first."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return X86.get(torch.backends.cpu.get_cpu_capability(), ("x86-64",))
    return ("aarch64",) if machine in ("aarch64", "arm64") else ()


def path() -> Path | None:
    """The build that serves here; None where there is none."""
    chosen = os.environ.get(ENVIRONMENT)
    paths = [FOLDER / f"{name}.so" for name in ((chosen,) if chosen else names())]
    if chosen and os.sep in chosen:
        paths = [Path(chosen)]
    return next((path for path in paths if path.is_file()), None)


@functools.cache
def obstacle() -> str:
    """Empty, or the reason why there is no library to call."""
    found = path()
    if found is None:
        return f"there is no library for this CPU in {FOLDER}"
    try:
        load()
    except OSError as error:
        return f"{found} cannot be loaded: {error}"
    return ""


@functools.cache
def load() -> ctypes.CDLL:
    """Load the library.

    Raises:
        OSError: it cannot be loaded. FileNotFoundError: there is none.
    """
    found = path()
    if found is None:
        raise FileNotFoundError(obstacle())
    return ctypes.CDLL(str(found))
