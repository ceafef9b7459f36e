"""Kernels on the CPU: what they compute, what is refused, how they are built and kept."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import cuda_on_cpu
from cuda_on_cpu import CompileError, LaunchError, Module, build

SOURCE = r"""
struct Factor { float value; int more; };
extern "C" { Factor FACTOR; }

extern "C" __global__ void add(const float* a, const float* b, float* c, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}

extern "C" __global__ void sums(const float* x, float* y, int n) {
    __shared__ float of_warp[32];
    float value = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) value += x[i];
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xFFFFFFFF, value, offset);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0;
        for (int i = 0; i < blockDim.x / 32; ++i) sum += of_warp[i];
        *y = sum;
    }
}

extern "C" __global__ void racing(float* y) {
    __shared__ float shared[64];
    shared[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = shared[(threadIdx.x * 5 + 1) % 64];
}

extern "C" __global__ void divergent() { if (threadIdx.x < 32) __syncthreads(); }
extern "C" __global__ void half_a_shuffle() { if (threadIdx.x < 16) __shfl_xor_sync(0xFFFFFFFF, 1, 1); }
extern "C" __global__ void outside() { if (threadIdx.x == 20) __syncwarp(0xFFFF); }
extern "C" __global__ void lower_half(int* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0xFFFF, int(threadIdx.x), 5);
}

extern "C" __global__ void rounded(const float* x, float* y) {
    y[0] = x[0] * x[1] + x[2];
    y[1] = __fmul_rn(x[3], 0.5f);
}

extern "C" __global__ void scaled(float* y) { *y *= FACTOR.value; }

template <class T> __global__ void filled(T* y, T value) { y[threadIdx.x] = value; }

extern "C" __global__ void letters(signed char a, unsigned short b, long long c, double d, bool e, double* y) {
    *y = a + b + double(c) + d + e;
}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels above."""
    path = tmp_path_factory.mktemp("kernels") / "kernels.cu"
    path.write_text(SOURCE)
    return path


@pytest.fixture(scope="module")
def module(file: Path) -> Module:
    """Built."""
    return Module(file, variables=["FACTOR"], name_expressions=["filled<int>", "filled<float>"])


def address(array: np.ndarray) -> int:
    """Of its first element."""
    return array.ctypes.data


def test_a_grid_with_a_tail(module: Module) -> None:
    """Blocks and threads have their indices, and nothing is written behind the end."""
    a, b = np.arange(1000, dtype=np.float32), np.ones(1000, dtype=np.float32)
    for seed in range(4):
        c = np.full(1024, -1, dtype=np.float32)
        module.get_function("add")((8,), (128,), (address(a), address(b), address(c), 1000), seed)
        assert np.array_equal(c[:1000], a + 1)
        assert np.all(c[1000:] == -1)


@pytest.mark.parametrize("threads", [32, 256, 1024])
def test_shuffles_and_barriers(module: Module, threads: int) -> None:
    """A block's sum is the same in every order."""
    x, y = np.arange(5000, dtype=np.float32) % 7, np.zeros(1, dtype=np.float32)
    for seed in range(12):
        module.get_function("sums")((1,), (threads,), (address(x), address(y), 5000), seed)
        assert y[0] == x.sum()


def test_a_race_shows(module: Module) -> None:
    """Without its barrier a kernel reads what nobody wrote (NaN), and not the same in every order."""
    results = set()
    for seed in range(6):
        y = np.zeros(64, dtype=np.float32)
        module.get_function("racing")((1,), (64,), (address(y),), seed)
        assert np.isnan(y).any()
        results.add(y.tobytes())
    assert len(results) > 2


@pytest.mark.parametrize(
    ("kernel", "told"),
    [("divergent", "__syncthreads"), ("half_a_shuffle", "a shuffle"), ("outside", "not in its mask")],
)
def test_what_would_hang_is_told(module: Module, kernel: str, told: str) -> None:
    """And the module can be used again."""
    for seed in range(4):
        with pytest.raises(LaunchError, match=told):
            module.get_function(kernel)((1,), (64,), (), seed)
    test_a_grid_with_a_tail(module)


def test_a_mask_of_some_lanes(module: Module) -> None:
    """Is enough for those."""
    y = np.zeros(16, dtype=np.int32)
    module.get_function("lower_half")((1,), (32,), (address(y),), 7)
    assert np.array_equal(y, np.arange(16) ^ 5)


def test_each_operation_rounds_once(module: Module) -> None:
    """No contraction, and subnormal numbers are kept."""
    x = np.array([1 + 2**-12, 1 + 2**-12, -(1 + 2**-11), 2**-148], dtype=np.float32)
    y = np.zeros(2, dtype=np.float32)
    module.get_function("rounded")((1,), (1,), (address(x), address(y)))
    assert y[0] == 0  # contracted, it would be 2^-24
    assert y[1] == np.float32(2**-149)


def test_variables_of_the_host(module: Module) -> None:
    """Are written where they are."""
    y = np.array([3], dtype=np.float32)
    ctypes.c_float.from_address(module.get_global("FACTOR")).value = 2.5
    module.get_function("scaled")((1,), (1,), (address(y),))
    assert y[0] == 7.5
    with pytest.raises(KeyError, match="variables"):
        module.get_global("PLAN")


def test_templates_and_types(module: Module) -> None:
    """Kernels by name expression; arguments become what the kernel declares."""
    numbers, integers = np.zeros(8, dtype=np.float32), np.zeros(8, dtype=np.int32)
    module.get_function("filled<float>")((1,), (8,), (address(numbers), 1.5))
    module.get_function("filled<int>")((1,), (8,), (address(integers), np.int64(-4)))
    assert (numbers == 1.5).all()
    assert (integers == -4).all()
    y = np.zeros(1)
    module.get_function("letters")((1,), (1,), (-1, np.uint16(2), 2**40, np.float32(0.5), True, address(y)))
    assert y[0] == 2**40 + 2.5


@pytest.mark.parametrize(
    ("grid", "block", "args", "error", "told"),
    [
        ((1,), (1,), (0,), TypeError, "takes 4 arguments, not 1"),
        ((1,), (1,), (0, 0, 0, 1.5), TypeError, "argument 3 of add is 1.5"),
        ((1,), (1,), (np.zeros(3), 0, 0, 1), TypeError, "argument 0 of add"),
        ((0,), (1,), (0, 0, 0, 1), ValueError, "grid"),
        ((1,), (32, 33), (0, 0, 0, 1), ValueError, "1024"),
    ],
)
def test_bad_launches(module: Module, grid: object, block: object, args: object, error: type, told: str) -> None:
    """Nothing runs."""
    with pytest.raises(error, match=told):
        module.get_function("add")(grid, block, args)  # type: ignore[arg-type]


def test_names_that_are_not_there(module: Module, tmp_path: Path) -> None:
    """A kernel that is not in the file, and a file without kernels."""
    with pytest.raises(KeyError, match="there are add"):
        module.get_function("subtract")
    (tmp_path / "empty.cu").write_text("__device__ int x;")
    with pytest.raises(CompileError, match="no extern"):
        Module(tmp_path / "empty.cu")


def test_compile_errors_point_at_the_source(tmp_path: Path) -> None:
    """By file and line, as g++ says it."""
    (tmp_path / "wrong.cu").write_text('\n\nextern "C" __global__ void k(float* x) { y[0] = 1; }\n')
    with pytest.raises(CompileError, match=r"wrong\.cu:3:.*\n?.*y"):
        Module(tmp_path / "wrong.cu")


def test_without_a_compiler_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_slow_way_gives_the_same(file: Path) -> None:
    """By ucontext, where there is no assembler for it."""
    slow = Module(file, define={"CUDA_ON_CPU_UCONTEXT": "1"})
    test_shuffles_and_barriers(slow, 256)
    test_what_would_hang_is_told(slow, "divergent", "__syncthreads")


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
    ("sanitizer", "offset", "told"), [("address", 0, "heap-buffer-overflow"), ("undefined", 4, "misaligned")]
)
def test_sanitizers(tmp_path: Path, sanitizer: str, offset: int, told: str) -> None:
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
    assert told in done.stderr
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


@pytest.mark.parametrize(("i", "value"), [(0, 128), (1, -1), (2, 2**63), (3, "1.5"), (3, np.zeros(1)), (4, 2), (5, -8)])
def test_arguments_that_do_not_fit(module: Module, i: int, value: object) -> None:
    """No bits are dropped in silence."""
    args: list[object] = [1, 2, 3, 4.0, True, address(np.zeros(1))]
    args[i] = value
    with pytest.raises(TypeError, match=f"argument {i} of letters"):
        module.get_function("letters")((1,), (1,), args)


def test_threads_of_the_host_take_turns(file: Path) -> None:
    """Two modules of the same source are one library."""
    wrong = []

    def work(value: int) -> None:
        kernel = Module(file, name_expressions=["filled<int>"]).get_function("filled<int>")
        for seed in range(200):
            y = np.zeros(256, dtype=np.int32)
            kernel((1,), (256,), (address(y), value), seed)
            wrong.extend(y[y != value])

    workers = [threading.Thread(target=work, args=(value,)) for value in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_address_sanitizer_wants_its_library(file: Path) -> None:
    """Which, loaded too late, would end the process."""
    if hasattr(ctypes.CDLL(None), "__asan_init"):
        pytest.skip("it is loaded")
    with pytest.raises(RuntimeError, match="LD_PRELOAD"):
        Module(file, sanitize=["address"])
