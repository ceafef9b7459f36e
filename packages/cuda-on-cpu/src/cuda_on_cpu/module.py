"""Kernels that can be launched on the CPU, with the call shape that CuPy gives them on a GPU."""

from __future__ import annotations

import ctypes
import functools
import math
import numbers
import operator
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from . import build

_TYPES: dict[str, Any] = {
    "?": ctypes.c_bool,
    "b": ctypes.c_int8,
    "h": ctypes.c_int16,
    "i": ctypes.c_int32,
    "q": ctypes.c_int64,
    "B": ctypes.c_uint8,
    "H": ctypes.c_uint16,
    "I": ctypes.c_uint32,
    "Q": ctypes.c_uint64,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}  # by their letters in Python's struct; Q for addresses too

#: Threads that a block may have, as on a GPU.
MOST_THREADS = 1024


class _Kernel(ctypes.Structure):
    """``struct Kernel`` of ``runtime.h``."""

    _fields_: ClassVar = [("name", ctypes.c_char_p), ("types", ctypes.c_char_p), ("run", ctypes.c_void_p)]


@functools.cache
def _lock(path: Path) -> threading.Lock:
    """Return the lock of a library, one for all its modules, as threadIdx and the like belong to the library."""
    return threading.Lock()


class LaunchError(RuntimeError):
    """A launch that a GPU would refuse or hang in, such as one with a barrier that some threads do not reach."""


class Module:
    """A file of CUDA C++, built for this machine.

    Args:
        file: the source. Its ``extern "C" __global__`` functions are its kernels.
        include: folders of its headers.
        define: macros.
        name_expressions: other kernels, as ``"scale<float>"``.
        variables: global variables that the host writes.
        sanitize: of ``"address"`` and ``"undefined"``; the process has to preload libasan for the first.

    Raises:
        CompileError: there is no compiler, it refuses the source, or there is no kernel.
        RuntimeError: AddressSanitizer, which this process has not loaded.
        ValueError: a sanitizer that is not known.
    """

    def __init__(
        self,
        file: Path,
        *,
        include: Sequence[Path] = (),
        define: Mapping[str, str] | None = None,
        name_expressions: Sequence[str] = (),
        variables: Sequence[str] = (),
        sanitize: Sequence[str] = (),
    ) -> None:
        self._variables = list(variables)
        self.path, self._kernels = build.library(file, name_expressions, variables, include, define or {}, sanitize)
        self._library = ctypes.CDLL(str(self.path))
        self._library.cuda_on_cpu_launch.restype = ctypes.c_char_p
        self._table = (_Kernel * len(self._kernels)).in_dll(self._library, "cuda_on_cpu_kernels")
        self._lock = _lock(self.path)

    def get_function(self, name: str) -> Function:
        """A kernel, by its name or name expression.

        Raises:
            KeyError: there is none of that name.
        """
        if name not in self._kernels:
            raise KeyError(f"{name!r} is no kernel here; there are {', '.join(self._kernels)}")
        return Function(self._table[self._kernels.index(name)], self._library, self._lock)

    def get_global(self, name: str) -> int:
        """The address of one of ``variables``.

        Raises:
            KeyError: it is not among them.
        """
        if name not in self._variables:
            raise KeyError(f"{name!r} is not among variables={tuple(self._variables)}")
        get = getattr(self._library, f"cuda_on_cpu_variable_{self._variables.index(name)}")
        get.restype = ctypes.c_void_p
        return int(get())


class Function:
    """A kernel: ``function(grid, block, args, seed=0)``."""

    def __init__(self, kernel: _Kernel, library: ctypes.CDLL, lock: threading.Lock) -> None:
        self._kernel, self._lock = kernel, lock
        self._name, self._letters = kernel.name.decode(), kernel.types.decode()
        self._launch = library.cuda_on_cpu_launch

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], seed: int = 0) -> None:
        """Run the kernel to its end.

        Args:
            grid, block: one to three sizes each; a block has at most 1024 threads.
            args: addresses and integers as ints, numbers as Python's or numpy's; converted to what the kernel declares.
            seed: the order of threads: 0 forward, 1 backward, any other shuffled. Results must not depend on it.

        Raises:
            TypeError, ValueError: arguments or sizes that do not fit.
            LaunchError: a barrier or warp operation that not all its threads reach.
        """
        sizes = (ctypes.c_uint * 6)(*_dimensions("grid", grid), *_dimensions("block", block))
        if math.prod(block) > MOST_THREADS:
            raise ValueError(f"block={block}: must be at most {MOST_THREADS} threads")
        if len(args) != len(self._letters):
            raise TypeError(f"{self._name} takes {len(self._letters)} arguments, not {len(args)}")
        values = [self._converted(i, value) for i, value in enumerate(args)]
        addresses = (ctypes.c_void_p * max(len(values), 1))(*map(ctypes.addressof, values))
        with self._lock:
            error = self._launch(ctypes.byref(self._kernel), sizes, addresses, ctypes.c_uint64(seed))
        if error:
            raise LaunchError(f"{self._name}: {error.decode()}")

    def _converted(self, i: int, value: Any) -> Any:
        letter = self._letters[i]
        try:
            if letter in "fd":
                return _TYPES[letter](_number(value))
            converted = _TYPES[letter](plain := _integer(value))
        except TypeError as error:
            wanted = "a number" if letter in "fd" else "an integer; for a pointer, an address"
            raise TypeError(f"argument {i} of {self._name} is {value!r}: it must be {wanted}") from error
        if converted.value != plain:  # ctypes keeps the lowest bits
            raise TypeError(f"argument {i} of {self._name} is {value!r}: it must fit {_TYPES[letter].__name__}")
        return converted


def _integer(value: Any) -> int:
    return bool(value) if isinstance(value, np.bool_) else operator.index(value)


def _number(value: Any) -> float:
    """Convert to float, but refuse a string, which float() would accept."""
    if not isinstance(value, numbers.Real):
        raise TypeError
    return float(value)


def _dimensions(name: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if not 1 <= len(sizes) <= 3 or any(size < 1 for size in sizes):
        raise ValueError(f"{name}={sizes}: must be one to three positive sizes")
    return (*sizes, *[1] * (3 - len(sizes)))
