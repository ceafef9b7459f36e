"""torch.compile, told what matters: one function serves all shapes and numbers, and nobody waits unawares."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("lionbits_compiled")

#: What torch runs its C++ with where the environment names none.
_DEFAULT = {"darwin": "clang++", "win32": "cl"}


def obstacle() -> str:
    """Empty, or why nothing can be compiled here."""
    compiler = os.environ.get("CXX") or _DEFAULT.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        return (
            f"torch.compile needs a C++ compiler, and {compiler!r} is not on the path. Install one (Debian: "
            f"apt install g++), name yours in CXX, or choose backend='reference'"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return (
            f"torch.compile needs the headers of Python, and there is no {header}. Install them (Debian: apt install "
            f"python3-dev), or choose backend='reference'"
        )
    return ""


class Compiled:
    """A function of tensors that is compiled at its first call. It returns nothing: it writes into its arguments.

    What it is compiled for are contiguous tensors of the ranks and dtypes of the first call, none of which requires a
    gradient or overlaps another, and any sizes above one. Callers keep to that: looking whether they do would take
    torch longer, at every call, than the work of a small matrix. torch keeps what it has compiled on disk, so that the
    next process only has to look it up.

    Args:
        function: of tensors, and of tuples of tensors.
        title: what it does, in the messages.
        width: the one size that is always the same; 0: none is.
    """

    def __init__(self, function: Callable[..., None], title: str, width: int = 0) -> None:
        self._function, self._title, self._width = function, title + (f", rows of {width}" if width else ""), width
        self._threads = 0
        self._code: CodeType = function.__code__
        self._run: Callable[..., Any] = function

    def __call__(self, *arguments: Any) -> None:
        """Compute, having compiled first if that is still to be done for so many threads."""
        if self._threads != torch.get_num_threads() or not _compilations(self._code):
            self._compile(arguments)
        self._run(*arguments)

    def _compile(self, arguments: Sequence[Any]) -> None:
        own = self._own_code()
        run = torch.compile(own, fullgraph=True, options={"guard_filter_fn": _trust, "size_asserts": _asserts()})
        with _told(self._title):
            run(*(_example(argument, self._width) for argument in arguments))
        self._run, self._code, self._threads = run, own.__code__, torch.get_num_threads()

    def _own_code(self) -> FunctionType:
        """torch.compile counts recompilations by code object, which closures of one function share: copies do not."""
        function = self._function
        assert isinstance(function, FunctionType)
        name = f"{function.__name__}_{''.join(c if c.isalnum() else '_' for c in self._title)}"
        code = function.__code__.replace(co_name=name)
        return FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)


def _compilations(code: CodeType) -> list[Any]:
    """What torch has compiled of this code: nothing any more after ``torch.compiler.reset()``, which anyone may call.

    It would compile again at the next call, but for the very sizes of that call, and no guard would say so.
    """
    kept: list[Any] = _entries()(code)
    return kept


@functools.cache
def _entries() -> Callable[[CodeType], list[Any]]:
    """It is imported with the first that is compiled, as that takes longer than torch itself."""
    entries: Callable[[CodeType], list[Any]]
    entries = importlib.import_module("torch._C._dynamo.eval_frame")._debug_get_cache_entry_list
    return entries


def _trust(guards: Sequence[Any]) -> list[bool]:
    """Which of these conditions are looked at before each call: none."""
    return [False] * len(guards)


def _asserts() -> bool:
    """Whether sizes and strides are looked at all the same: torch's variable says so, and our tests set it.

    It takes a tenth of the time of a small matrix at 32 bits, and a fifth at 8.
    """
    return os.environ.get("TORCHINDUCTOR_SIZE_ASSERTS") == "1"


#: Rows of the matrices that a function is compiled for. It serves any number; whether threads are worth their while is
#: decided for this one. No size of a row equals it, as torch would take sizes that are equal once for the same.
ROWS = 4099


def _example(argument: Any, width: int) -> Any:
    """Zeros like an argument, with many rows, and sizes that are said to change."""
    if argument is None:
        return None
    if not isinstance(argument, Tensor):
        return type(argument)(*(_example(part, width) for part in argument))
    shape = (ROWS, argument.shape[1]) if argument.dim() == 2 else tuple(argument.shape)
    example = torch.zeros(shape, dtype=argument.dtype, device="cpu")
    for dimension, size in enumerate(shape):
        if size > 1 and (size != width or (dimension == 0 and len(shape) == 2)):
            torch._dynamo.mark_dynamic(example, dimension)
    return example


@contextmanager
def _told(title: str) -> Iterator[None]:
    """Say on a terminal what takes so long, and take it back; say in the log how long it took."""
    shown = sys.stderr.isatty()
    line = f"lionbits: compiling {title}; torch keeps it for the next run"
    if shown:
        print(f"\r{line} ...", end="", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    try:
        yield
    finally:
        if shown:
            print("\r" + " " * (len(line) + 4) + "\r", end="", file=sys.stderr, flush=True)
    log.info("compiled %s in %.1f s", title, time.perf_counter() - begin)
