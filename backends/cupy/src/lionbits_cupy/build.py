"""CUDA C++ to cubin, by NVRTC itself. It takes no GPU, and CuPy is imported at the first build.

``cupy.RawModule`` would append ``-ftz=true`` to whatever options it is given, and numbers below 2⁻¹²⁶ would be lost.
"""

from __future__ import annotations

import functools
import hashlib
import re
from typing import Any, NamedTuple

from . import cache

#: One rounding for each operation, that of IEEE 754, and no number flushed. NVRTC 12 and 13 know all of them. Functions
#: without ``__device__`` are not made device functions, so that a missing one is an error.
OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")

#: Counts up when a cubin comes out differently, though sources, options and NVRTC are the same.
VERSION = 1

#: A line in a log: ``a.cu(5): error: ...``; ``... at line 4 of a.cu``; ``... at line 7``, of the file last named.
_POINTER = re.compile(r"(?m)^(?P<file>\S.*)\((?P<line>\d+)\): |\bat line (?P<caller>\d+)(?: of (?P<other>.+))?$")

#: A directive from which on lines count differently.
_LINE = re.compile(r'\s*#\s*line\s+(?P<number>\d+)(?:\s+"(?P<file>.*)")?')


class Source(NamedTuple):
    """A CUDA C++ source and all that it includes.

    Attributes:
        name: as errors call it: ``kernels.cu``.
        text: of the source.
        headers: name, as ``#include`` spells it, and text of each.
    """

    name: str
    text: str
    headers: tuple[tuple[str, str], ...] = ()


class Build(NamedTuple):
    """Output of NVRTC for a source.

    Attributes:
        cubin: for the driver to load, with all ``extern "C"`` kernels under their names.
        ptx: what ptxas assembled.
        log: warnings; with ``verbose`` also registers and spills of each kernel.
    """

    cubin: bytes
    ptx: str
    log: str


class CompileError(RuntimeError):
    """A source that does not compile: NVRTC's log, then all lines that it points at."""


def version() -> tuple[int, int]:
    """Return NVRTC's version, major and minor."""
    major, minor = _nvrtc().getVersion()
    return major, minor


def build(source: Source, arch: int, verbose: bool = False, lines: bool = False) -> Build:
    """Compile a source for GPUs of a compute capability.

    Args:
        source: its kernels are ``extern "C"``.
        arch: compute capability, as 90 for 9.0.
        verbose: add ptxas' report of each kernel to the log.
        lines: say in the PTX which line of the source each instruction is from; it changes no instruction.

    Raises:
        CompileError: there is an error in the source.
        ValueError: NVRTC does not know the compute capability.
        ImportError: CuPy or NVRTC is missing.
    """
    nvrtc, called = _nvrtc(), f"NVRTC {'.'.join(map(str, version()))}"
    if unknown := obstacle(arch):
        raise ValueError(unknown)
    names, texts = ([header[i].encode() for header in source.headers] for i in (0, 1))
    program = nvrtc.createProgram(source.text, source.name, texts, names)
    try:
        options = [
            *OPTIONS,
            f"--gpu-architecture=sm_{arch}",
            *["--ptxas-options=-v"] * verbose,
            *["--generate-line-info"] * lines,
        ]
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            what = f"{source.name} for sm_{arch}: {error} of {called}"
            log = _log(program)
            raise CompileError("\n".join([what, log, *_lines(source, log)])) from None
        # CuPy drops the last byte, the highest of the ELF's last 64-bit number: a zero
        return Build(nvrtc.getCUBIN(program) + b"\0", nvrtc.getPTX(program).decode(), _log(program))
    finally:
        nvrtc.destroyProgram(program)


def obstacle(arch: int) -> str:
    """Return the reason why nothing can be built for a compute capability, as 90, or an empty string."""
    try:
        known = _nvrtc().getSupportedArchs()
    except ImportError as error:
        return str(error)
    if arch in known:
        return ""
    return (
        f"NVRTC {'.'.join(map(str, version()))} does not know sm_{arch}; it knows "
        f"{', '.join(f'sm_{one}' for one in known)}. "
        "A newer GPU needs a newer NVRTC: pip install --upgrade nvidia-cuda-nvrtc, with cupy-cuda13x"
    )


def cubin(source: Source, arch: int) -> bytes:
    """Return the cubin of :func:`build`, from the disk if it was built before."""
    return cache.get(key(source, arch), lambda: build(source, arch).cubin)


def ptx(source: Source, arch: int) -> str:
    """Return the PTX of :func:`build` with lines of the source, from the disk if it was built before."""

    def make() -> bytes:
        return build(source, arch, lines=True).ptx.encode()

    return cache.get(key(source, arch, "ptx"), make).decode().rstrip("\0")


def key(source: Source, arch: int, kind: str = "cubin") -> str:
    """Return a digest of all that a cubin, or the PTX, depends on."""
    return hashlib.sha256(repr((VERSION, kind, version(), OPTIONS, arch, tuple(source))).encode()).hexdigest()


@functools.cache
def _nvrtc() -> Any:
    try:
        from cupy.cuda import nvrtc
    except ImportError as error:
        raise ImportError("CUDA kernels need CuPy: pip install cupy-cuda13x, or cupy-cuda12x for CUDA 12") from error
    try:
        nvrtc.getVersion()  # loads the library
    except RuntimeError as error:
        raise ImportError(
            "CuPy finds no NVRTC: pip install nvidia-cuda-nvrtc, or nvidia-cuda-nvrtc-cu12 for cupy-cuda12x; before "
            "version 14, CuPy looks for it only where the system has its libraries"
        ) from error
    return nvrtc


def _log(program: int) -> str:
    log: str = _nvrtc().getProgramLog(program)
    return log.strip("\0\n")


def _lines(source: Source, log: str) -> list[str]:
    """Return the lines that a log refers to, each once, as ``file:number: text``."""
    texts: dict[tuple[str, int], str] = {}
    for name, text in ((source.name, source.text), *source.headers):
        file, number = name, 1
        for line in text.split("\n"):
            texts[file, number] = line
            number += 1
            if directive := _LINE.match(line):
                file, number = directive["file"] or file, int(directive["number"])
    file, found = source.name, dict[str, None]()
    for pointer in _POINTER.finditer(log):
        file = pointer["file"] or pointer["other"] or file
        number = int(pointer["line"] or pointer["caller"])
        if (file, number) in texts:
            found[f"{file}:{number}: {texts[file, number]}"] = None
    return list(found)
