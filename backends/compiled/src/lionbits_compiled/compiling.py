"""Compilation by Inductor: one function serves all shapes and numbers, and reports when it compiles."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import struct
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import flags, private

log = logging.getLogger("lionbits_compiled")

#: Held by the thread that compiles: torch keeps what it traces in variables that all threads share.
_COMPILING = threading.Lock()

#: Compiler that torch uses if the environment names none.
_DEFAULT = {"darwin": "clang++", "win32": "cl"}


def obstacle() -> str:
    """Return the reason why nothing can be compiled here, or an empty string."""
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
    return private.obstacle()


class Compiled:
    """A function of tensors and numbers that is compiled at its first call. It returns nothing: it writes into tensors.

    It is compiled for contiguous tensors of the ranks and dtypes of the first call, none of which requires a
    gradient or overlaps another, and for any sizes above one. Callers guarantee that: torch's checks of it would take
    longer, at every call, than the work of a small matrix. torch keeps compiled code on disk, so that the
    next process only has to look it up.

    Numbers may have any value. They are passed to compiled code by value: memory would have to be read again after
    every write, which might have changed it. In the function a float is a 0-d float32 tensor.

    Args:
        function: of tensors and numbers, and of tuples of these.
        title: what it does, in the messages.
        width: the one size that is always the same; 0: none is.
    """

    def __init__(self, function: Callable[..., None], title: str, width: int = 0) -> None:
        self._function, self._title, self._width = function, title + (f", rows of {width}" if width else ""), width
        self._threads = 0
        self._run: Callable[..., Any] = function

    def __call__(self, *arguments: Any) -> None:
        """Compute, having compiled first if that was not done for the present number of threads."""
        if self._threads != torch.get_num_threads():
            with _COMPILING:
                self._compile(arguments)
        self._run(*_leaves(arguments))

    def _compile(self, arguments: Sequence[Any]) -> None:
        """Compile, unless another thread has done so in the meantime."""
        if self._threads != torch.get_num_threads():
            with _progress(self._title):
                self._run = self._compiled(arguments)
            self._threads = torch.get_num_threads()

    def _compiled(self, arguments: Sequence[Any]) -> Callable[..., Any]:
        """Return the compiled function of all tensors in arguments like these, in order.

        Inductor gets the graph directly: torch.compile's work around it takes 13 us at every call, and is not needed.
        """

        def traced(*leaves: Any) -> tuple[Any, ...]:
            for leaf in leaves:
                self._fix(leaf)
            self._function(*_arranged(arguments, iter(leaves)))
            return _sizes(leaves)

        zeros = list(itertools.starmap(_example, enumerate(_leaves(arguments))))
        graph = private.graph(traced, {torch.ops.aten.sign.default: _sign}, zeros)
        examples = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        with flags.added():
            run = private.compile_graph(graph, examples, _settings())
        _check_assumptions(examples)
        return run

    def _fix(self, leaf: Any) -> None:
        """Make the width a constant of the graph, if it is always the same."""
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[-1] == self._width:
            int(leaf.shape[-1])


def _leaves(arguments: Iterable[Any]) -> list[Any]:
    """Return the tensors and numbers in arguments, and in tuples among these; floats as their bits."""
    found: list[Any] = []
    for argument in arguments:
        if isinstance(argument, tuple):
            found += _leaves(argument)
        elif isinstance(argument, float):
            found.append(bits(argument))
        elif argument is not None:
            found.append(argument)
    return found


def _arranged(arguments: Iterable[Any], leaves: Iterator[Any]) -> list[Any]:
    """Return tensors and numbers in the structure of the arguments."""
    return [_placed(argument, leaves) for argument in arguments]


def _placed(argument: Any, leaves: Iterator[Any]) -> Any:
    if argument is None:
        return None
    if isinstance(argument, tuple):
        return type(argument)(*_arranged(argument, leaves))
    return scalar(next(leaves)) if isinstance(argument, float) else next(leaves)


def scalar(bits: int) -> Tensor:
    """Return the 0-d float32 tensor of these bits."""
    return torch.full((), bits, dtype=torch.int32, device="cpu").view(torch.float32)


def bits(number: float) -> int:
    """Return the bits of a number as float32, as a signed 32-bit int."""
    return int(_INT32.unpack(_FLOAT32.pack(number))[0])


_FLOAT32, _INT32 = struct.Struct("=f"), struct.Struct("=i")


def _sign(x: Tensor) -> Tensor:
    """Compute torch.sign of float32, 0 for NaN: with AVX-512 it takes six instructions, Inductor's nine."""
    signed = (x.view(torch.int32) & -(1 << 31)) | torch.ones_like(x).view(torch.int32)
    return torch.where(x.abs() > 0.0, signed.view(torch.float32), 0.0)


def _settings() -> dict[str, Any]:
    """Return Inductor's settings that differ from torch's defaults.

    Sizes and strides are not checked: that takes a tenth of the time of a small matrix at 32 bits, and a fifth at 8.
    Loops over rows alone are too short for several threads.

    torch takes the length of vectors from the machine, but leaves it out of the keys of its disk cache. If machines
    share that cache, one with shorter vectors would leave half of all elements unchanged. Settings are in the keys.
    """
    return {
        "cpp.simdlen": private.vector_bits(),
        "size_asserts": False,
        "cpp.min_chunk_size": ROWS // torch.get_num_threads() + 1,
    }


#: Rows of the matrices that a function is compiled for. It serves any number; whether threads are worth their while is
#: decided for this one. No size of a row equals it, as torch would take sizes that are equal once for the same.
ROWS = 4099


#: The fewest and the most rows, and elements of a row, that there are: what is compiled has to be right in between.
HEIGHTS, WIDTHS = (2, 1 << 22), (2, 4096)


def _check_assumptions(examples: Sequence[Any]) -> None:
    """Check that torch's assumptions hold for all sizes and numbers, as no call checks them.

    Raises:
        RuntimeError: it is not, in this version of torch. Nothing has been computed.
    """
    tensors = [example for example in examples if isinstance(example, Tensor)]
    heights = {private.expression(tensor.shape[0]) for tensor in tensors if tensor.dim() == 2}
    numbers = {private.expression(example) for example in examples if not isinstance(example, Tensor)}
    for condition, symbols in private.assumptions(next(iter(_sizes(tensors)))):
        ends = [[(symbol, end) for end in (HEIGHTS if symbol in heights else WIDTHS)] for symbol in symbols]
        fails = symbols and not all(condition.subs(corner) for corner in itertools.product(*ends))
        if symbols & numbers or fails:
            raise RuntimeError(
                f"torch {torch.__version__} would compile for {condition} only, which is not so of every call. "
                f"Choose backend='reference', or another version of torch."
            )


def _sizes(leaves: Iterable[Any]) -> tuple[Any, ...]:
    """Return each size of these tensors that is not constant, once.

    Traced functions return them, as the code that Inductor writes looks up what it returns. Of the sizes that its loops
    need, Inductor of torch 2.14 and 2.15 looks up no other, unless it is to check sizes.
    """
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    found = {str(size): size for tensor in tensors for size in tensor.shape if isinstance(size, torch.SymInt)}
    return tuple(size for name, size in found.items() if not name.isdecimal())


def _example(place: int, leaf: Any) -> Any:
    """Return zeros like a tensor, with many rows if it is a matrix; for a number, one that no other place has."""
    if not isinstance(leaf, Tensor):
        return (1 << 20) + 1 + place
    shape = (ROWS, leaf.shape[1]) if leaf.dim() == 2 else leaf.shape
    return torch.zeros(shape, dtype=leaf.dtype, device="cpu")


@contextmanager
def _progress(title: str) -> Iterator[None]:
    """Show on a terminal that a function is being compiled, and erase that afterwards; log the time."""
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
