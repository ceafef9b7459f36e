"""Libraries: which kernels are found, what the compiler says, what is kept, what sanitizers see."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cuda_on_cpu
from cuda_on_cpu import CompileError, Module, build

FILE = Path(__file__).with_name("kernels.cu")


def address(array: np.ndarray) -> int:
    """Of its first element."""
    return array.ctypes.data


def test_names_that_are_not_there(tmp_path: Path) -> None:
    """A kernel that is not in the file, and a file without kernels."""
    with pytest.raises(KeyError, match="there are add"):
        Module(FILE).get_function("subtract")
    (tmp_path / "empty.cu").write_text("__device__ int x;")
    with pytest.raises(CompileError, match="no extern"):
        Module(tmp_path / "empty.cu")


def test_compile_errors_point_at_the_source(tmp_path: Path) -> None:
    """By file and line, as g++ says it."""
    (tmp_path / "wrong.cu").write_text('\n\nextern "C" __global__ void k(float* x) { y[0] = 1; }\n')
    with pytest.raises(CompileError, match=r"wrong\.cu:3:.*\n?.*y"):
        Module(tmp_path / "wrong.cu")


def test_without_a_compiler_the_reason_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where another system is."""
    assert cuda_on_cpu.obstacle() == ""
    monkeypatch.setattr(build, "_compiler", build._compiler.__wrapped__)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "install g++" in cuda_on_cpu.obstacle()
    monkeypatch.setattr("sys.platform", "darwin")
    assert "Linux only" in cuda_on_cpu.obstacle()


def test_two_libraries_share_nothing(tmp_path: Path) -> None:
    """Not even the statics of a template."""
    text = "template <int N> struct Table {{ static int value; }};\ntemplate <int N> int Table<N>::value = {};\n"
    text += 'extern "C" __global__ void k(int* y) {{ *y = Table<0>::value; }}\n'
    found = []
    for value in (3, 4):
        (tmp_path / f"{value}.cu").write_text(text.format(value))
        y = np.zeros(1, dtype=np.int32)
        Module(tmp_path / f"{value}.cu").get_function("k")((1,), (1,), (address(y),))
        found.append(int(y[0]))
    assert found == [3, 4]


def test_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second build is none; a damaged library, a header's other text and another flag are built."""
    monkeypatch.setattr(build, "_folder", lambda: tmp_path)
    builds: list[Path] = []
    original = build._compile
    monkeypatch.setattr(build, "_compile", lambda *given: (builds.append(given[2]), original(*given)))
    header, source = tmp_path / "one.cuh", tmp_path / "one.cu"
    header.write_text("constexpr int ONE = 1;")
    source.write_text('#include "one.cuh"\nextern "C" __global__ void k(int* y) { *y = ONE; }')
    first = Module(source, include=[tmp_path]).path
    assert Module(source, include=[tmp_path]).path == first
    assert len(builds) == 1
    part = first.read_bytes()[:1000]
    first.unlink()  # it is loaded: what is cut off under a process ends that
    first.write_bytes(part)
    assert Module(source, include=[tmp_path]).path == first
    assert len(builds) == 2
    header.write_text("constexpr int ONE = 2;")
    assert Module(source, include=[tmp_path]).path != first
    Module(source, include=[tmp_path], define={"N": "3"})
    assert len(builds) == 4


SANITIZED = r"""
import sys, ctypes
from pathlib import Path
from cuda_on_cpu import Module
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
at = libc.malloc(ctypes.c_size_t(64))
kernel = Module(Path(sys.argv[1]), sanitize=[sys.argv[2]]).get_function("k")
kernel((1,), (4,), (at + int(sys.argv[3]),))
print("came through")
"""


@pytest.mark.parametrize(
    ("sanitizer", "offset", "message"), [("address", 0, "heap-buffer-overflow"), ("undefined", 4, "misaligned")]
)
def test_sanitizers(tmp_path: Path, sanitizer: str, offset: int, message: str) -> None:
    """A read behind the end, or a vector where no GPU accepts one, ends the process, and its line is named."""
    asan = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(asan).is_absolute():
        pytest.skip("this g++ has no AddressSanitizer")
    far = "threadIdx.x" if sanitizer == "address" else "0"
    (tmp_path / "bad.cu").write_text(
        f'extern "C" __global__ void k(uint4* x) {{\n    uint4 v = x[2 * {far}];\n    if (v.x == 12345) x[0] = v;\n}}\n'
    )
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    if sanitizer == "address":
        environment["LD_PRELOAD"] = asan
    command = [sys.executable, "-c", SANITIZED, str(tmp_path / "bad.cu"), sanitizer, str(offset)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "bad.cu:2" in done.stderr
    assert "came through" not in done.stdout


KERNEL = 'extern "C" __global__ void k(int* y) { *y = 1; }\n'


@pytest.mark.parametrize(
    "text",
    [
        KERNEL.replace("void", "__launch_bounds__(128) void"),
        KERNEL.replace("void", "void __launch_bounds__(int(128))"),
        '// extern "C" __global__ void old();\n' + KERNEL,
        '#if 0\nextern "C" __global__ void old() {}\n#endif\n' + KERNEL,
        '#define NAMED(name) extern "C" __global__ void name(int* y) { *y = 1; }\nNAMED(k)\n',
    ],
    ids=["bounds-first", "bounds-last", "comment", "left-out", "macro"],
)
def test_kernels_are_found(tmp_path: Path, text: str) -> None:
    """As the compiler sees them."""
    (tmp_path / "k.cu").write_text(text)
    y = np.zeros(1, dtype=np.int32)
    Module(tmp_path / "k.cu").get_function("k")((1,), (1,), (address(y),))
    assert y[0] == 1


def test_names_of_the_shim_are_free(tmp_path: Path) -> None:
    """For macros, and for headers."""
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "threads.h").write_text("constexpr int THREADS = 4;\n")
    (tmp_path / "k.cu").write_text(
        '#include "threads.h"\nextern "C" __global__ void k(T* y) { y[0] = THREADS + WARP + STACK; }\n'
    )
    macros = {"T": "float", "WARP": "32", "STACK": "64"}
    y = np.zeros(1, dtype=np.float32)
    module = Module(tmp_path / "k.cu", include=[tmp_path / "include"], define=macros)
    module.get_function("k")((1,), (1,), (address(y),))
    assert y[0] == 100


def test_address_sanitizer_wants_its_library() -> None:
    """Which, loaded too late, would end the process."""
    if hasattr(ctypes.CDLL(None), "__asan_init"):
        pytest.skip("it is loaded")
    with pytest.raises(RuntimeError, match="LD_PRELOAD"):
        Module(FILE, sanitize=["address"])
