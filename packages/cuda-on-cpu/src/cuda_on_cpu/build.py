"""Building a library from a file of CUDA C++: g++, a generated entry point, a cache by content."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

INCLUDE = Path(__file__).parent / "include"

#: Folder of libraries: this variable, or a folder of the user's cache.
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

#: In preprocessed text: no comments, no macros, nothing that an #if leaves out.
_KERNEL = re.compile(r'\bextern\s+"C"((?:\s+\w+)+)\s+(\w+)\s*\(')


class CompileError(RuntimeError):
    """The C++ compiler refused the source; its message follows."""


def obstacle() -> str:
    """Return the reason why nothing can be built here, or an empty string."""
    if sys.platform != "linux":
        return f"kernels run on the CPU on Linux only, not on {sys.platform}"
    try:
        _compiler()
    except CompileError as error:
        return str(error)
    return ""


def library(
    file: Path,
    name_expressions: Sequence[str],
    variables: Sequence[str],
    include: Sequence[Path],
    define: Mapping[str, str],
    sanitize: Sequence[str],
) -> tuple[Path, list[str]]:
    """Return the library of a file, built unless it is in the cache, and the names of its kernels.

    Raises:
        CompileError: there is no compiler, it refuses the source, or there is no kernel.
        RuntimeError: AddressSanitizer, which this process has not loaded.
        ValueError: a sanitizer that is not known.
    """
    if unknown := set(sanitize) - set(SANITIZERS):
        raise ValueError(f"sanitize={tuple(sanitize)!r}: {sorted(unknown)} must be of {sorted(SANITIZERS)}")
    if "address" in sanitize and not hasattr(ctypes.CDLL(None), "__asan_init"):  # which would end the process
        raise RuntimeError(
            'sanitize="address": start Python with LD_PRELOAD=$(g++ -print-file-name=libasan.so) and '
            "ASAN_OPTIONS=detect_leaks=0 in its environment"
        )
    flags = [*FLAGS, *_architecture(), *(flag for name in sanitize for flag in SANITIZERS[name])]
    flags += [f"-D{name}={value}" for name, value in define.items() if name.startswith("CUDA_ON_CPU_")]
    flags += [f"-I{folder}" for folder in include]
    source = _source(file, define)
    whole = _run([*flags, "-D__global__=__global__", "-E", "-x", "c++", "-"], source)  # with all that is included
    kernels = [*_kernels(whole), *name_expressions]
    if not kernels:
        raise CompileError(f'{file} has no extern "C" __global__ function, and no name_expressions are given')
    text = source + _entry_points(kernels, variables)
    parts = [whole, text, (INCLUDE / "runtime.cpp").read_text(), (INCLUDE / "fibers.h").read_text()]
    parts += [*flags, *_compiler()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    kept = _folder() / f"{file.stem}-{key}.so"
    if not _is_whole(kept):
        _compile(text, [*flags, str(INCLUDE / "runtime.cpp")], kept)
    return kept, kernels


def host_library(file: Path, flags: Sequence[str]) -> Path:
    """Return the library of a file of plain C++, built unless it is in the cache.

    Raises:
        CompileError: there is no compiler, or it refuses the source.
    """
    text = file.read_text()
    key = hashlib.sha256("\0".join([text, *flags, *_compiler()]).encode()).hexdigest()[:32]
    kept = _folder() / f"{file.stem}-{key}.so"
    if not _is_whole(kept):
        _compile(text, flags, kept)
    return kept


def _source(file: Path, define: Mapping[str, str]) -> str:
    """Return the source with the header first: a macro before it, such as T, would break it."""
    lines = [f"#define {name} {value}" for name, value in define.items() if not name.startswith("CUDA_ON_CPU_")]
    return "\n".join([f'#include "{INCLUDE / "cuda_on_cpu.h"}"', *lines, f'#include "{file.resolve()}"']) + "\n"


def _kernels(whole: str) -> list[str]:
    """Return the names of kernels in preprocessed text, each once."""
    return list(dict.fromkeys(name for words, name in _KERNEL.findall(whole) if "__global__" in words.split()))


def _entry_points(kernels: Sequence[str], variables: Sequence[str]) -> str:
    """Return the source of the symbols that Python looks up."""
    entries = [f'    CUDA_ON_CPU_KERNEL("{name}", {name}),' for name in kernels]
    getters = [
        f'extern "C" __attribute__((visibility("default"))) void* cuda_on_cpu_variable_{i}() {{ return &{name}; }}'
        for i, name in enumerate(variables)
    ]
    return "\n".join(["CUDA_ON_CPU_KERNELS = {", *entries, "};", *getters]) + "\n"


def _compile(text: str, flags: Sequence[str], kept: Path) -> None:
    """Build in a folder of its own; other processes see the whole library or none."""
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix="building-") as folder:
        source, built, digest = (Path(folder) / name for name in ("entry.cpp", "built.so", "digest"))
        source.write_text(text)
        _run([str(source), *flags, "-o", str(built)])
        built.chmod(0o600)  # whatever the umask: what others can write is not loaded
        digest.write_text(_digest(built))
        digest.chmod(0o600)
        built.replace(kept)
        digest.replace(kept.with_suffix(".sha256"))


def _run(arguments: Sequence[str], text: str | None = None) -> str:
    command = [_compiler()[0], *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def _is_whole(kept: Path) -> bool:
    """True if the file is what this user built: to load a truncated library would crash the process."""
    try:
        return _content(kept.with_suffix(".sha256")).decode() == _digest(kept)
    except (OSError, UnicodeDecodeError):
        return False


def _digest(file: Path) -> str:
    return hashlib.sha256(_content(file)).hexdigest()


def _content(file: Path) -> bytes:
    """Return the content of a file of this user. No link is followed, and a pipe is not waited for.

    Raises:
        OSError: there is none, or it is not to be trusted.
    """
    handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or _distrust(found):
            raise PermissionError(f"{file} is no plain file of this user alone")
        with os.fdopen(handle, "rb", closefd=False) as stream:
            return stream.read()
    finally:
        os.close(handle)


def _distrust(found: os.stat_result) -> str:
    """Return the reason why another user may have written this file or may write to this folder, or an empty string."""
    if found.st_uid not in (os.geteuid(), 0):
        return f"it belongs to user {found.st_uid}"
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX  # nobody replaces others' files there
    return "other users can write it" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky else ""


@functools.cache
def _compiler() -> tuple[str, str]:
    """Return the compiler and its version."""
    name = os.environ.get("CXX", "g++")
    found = shutil.which(name)
    if found is None:
        raise CompileError(f"there is no C++ compiler {name!r} on the path: install g++ (9 or later), or set CXX")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    return found, version.splitlines()[0]


@functools.cache
def _architecture() -> tuple[str, ...]:
    """Return flags for vectors of 32 bytes if this machine has them."""
    if platform.machine() != "x86_64":
        return ()
    try:
        known = "avx2" in Path("/proc/cpuinfo").read_text()
    except OSError:
        known = False
    return ("-march=x86-64-v3",) if known else ()


@functools.cache
def _folder() -> Path:
    """Return the folder of libraries; a temporary one if it cannot be written, or others can write to it."""
    with contextlib.suppress(OSError, RuntimeError):  # a folder that cannot be written; an account without a home
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(os.environ.get(CACHE) or Path(home) / "cuda-on-cpu").resolve()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = _distrust(folder.stat())
        with tempfile.TemporaryFile(dir=folder):
            if not reason:
                return folder
        way = f"chmod go-w it, or set {CACHE} to a folder of your own"
        warnings.warn(f"libraries are not kept in {folder}, as {reason}; {way}", stacklevel=4)
    return Path(tempfile.mkdtemp(prefix="cuda-on-cpu-"))
