"""torch.compile, told what matters: one function serves all shapes and numbers, and nobody waits unawares."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
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

    Sizes above one may be others at the next call. torch keeps what it has compiled on disk, so that the next process
    only has to look it up.

    Args:
        function: of tensors, and of tuples of tensors.
        title: what it does, in the messages.
    """

    def __init__(self, function: Callable[..., None], title: str) -> None:
        # torch.compile counts recompilations by code object, which closures of one function share: a copy counts anew.
        assert isinstance(function, FunctionType)
        name = f"{function.__name__}_{''.join(c if c.isalnum() else '_' for c in title)}"
        own = FunctionType(
            function.__code__.replace(co_name=name),
            function.__globals__,
            name,
            function.__defaults__,
            function.__closure__,
        )
        self._run: Callable[..., Any] = torch.compile(own, fullgraph=True)
        self._title = title
        self._ready = False

    def __call__(self, *arguments: Any) -> None:
        """Compute, having compiled first if that is still to be done."""
        if self._ready:
            self._run(*arguments)
            return
        with _told(self._title):
            _leave_sizes_open(arguments)
            self._run(*arguments)
        self._ready = True


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


def _leave_sizes_open(arguments: Any) -> None:
    for argument in arguments:
        if isinstance(argument, Tensor):
            for dimension, size in enumerate(argument.shape):
                if size > 1:
                    torch._dynamo.mark_dynamic(argument, dimension)
        elif argument is not None:
            _leave_sizes_open(argument)
