"""Kernels on the CPU: what they compute, in every order of threads, and which launches are refused."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import numpy as np
import pytest

from cuda_on_cpu import LaunchError, Module

FILE = Path(__file__).with_name("kernels.cu")


@pytest.fixture(scope="module")
def module() -> Module:
    """Built."""
    return Module(FILE, variables=["FACTOR"], name_expressions=["filled<int>", "filled<float>"])


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
    ("kernel", "message"),
    [("divergent", "__syncthreads"), ("half_a_shuffle", "a shuffle"), ("outside", "not in its mask")],
)
def test_what_would_hang_is_reported(module: Module, kernel: str, message: str) -> None:
    """And the module can be used again."""
    for seed in range(4):
        with pytest.raises(LaunchError, match=message):
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
    ("grid", "block", "args", "error", "message"),
    [
        ((1,), (1,), (0,), TypeError, "takes 4 arguments, not 1"),
        ((1,), (1,), (0, 0, 0, 1.5), TypeError, "argument 3 of add is 1.5"),
        ((1,), (1,), (np.zeros(3), 0, 0, 1), TypeError, "argument 0 of add"),
        ((0,), (1,), (0, 0, 0, 1), ValueError, "grid"),
        ((1,), (32, 33), (0, 0, 0, 1), ValueError, "1024"),
    ],
)
def test_bad_launches(module: Module, grid: object, block: object, args: object, error: type, message: str) -> None:
    """Nothing runs."""
    with pytest.raises(error, match=message):
        module.get_function("add")(grid, block, args)  # type: ignore[arg-type]


def test_the_slow_way_gives_the_same() -> None:
    """By ucontext, where there is no assembler for it."""
    slow = Module(FILE, define={"CUDA_ON_CPU_UCONTEXT": "1"})
    test_shuffles_and_barriers(slow, 256)
    test_what_would_hang_is_reported(slow, "divergent", "__syncthreads")


@pytest.mark.parametrize(("i", "value"), [(0, 128), (1, -1), (2, 2**63), (3, "1.5"), (3, np.zeros(1)), (4, 2), (5, -8)])
def test_arguments_that_do_not_fit(module: Module, i: int, value: object) -> None:
    """No bits are dropped in silence."""
    args: list[object] = [1, 2, 3, 4.0, True, address(np.zeros(1))]
    args[i] = value
    with pytest.raises(TypeError, match=f"argument {i} of letters"):
        module.get_function("letters")((1,), (1,), args)


def test_threads_of_the_host_take_turns() -> None:
    """Two modules of the same source are one library."""
    wrong = []

    def work(value: int) -> None:
        kernel = Module(FILE, name_expressions=["filled<int>"]).get_function("filled<int>")
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
