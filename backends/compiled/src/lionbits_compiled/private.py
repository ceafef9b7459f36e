"""The private names of torch that this backend uses, with a fallback for versions of torch that lack one.

A name that only saves time is left out there. If nothing can be compiled or checked without it, :func:`obstacle`
refuses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor

COMPILE = "torch._inductor:compile"
MAKE_FX = "torch.fx.experimental.proxy_tensor:make_fx"
SHAPE_ENV = "torch.fx.experimental.symbolic_shapes:ShapeEnv"
VECTORS = "torch._inductor.cpu_vec_isa:pick_vec_isa"
IS_GCC = "torch._inductor.cpp_builder:is_gcc"
SETTING = "torch._inductor.config:"

#: Names without a fallback. The length of vectors must be set for right results, see ``compiling.py``.
NEEDED = (
    COMPILE,
    MAKE_FX,
    SHAPE_ENV,
    "torch.fx.experimental.symbolic_shapes:ShapeGuard.expr",
    VECTORS,
    "torch._inductor.cpu_vec_isa:VecISA.bit_width",
    SETTING + "cpp.simdlen",
)


@functools.cache
def obstacle() -> str:
    """Return the names that are missing in this torch and cannot be replaced, or an empty string. Looked up once."""
    for name in NEEDED:
        if not _has(name):
            return lacks(name.replace(":", "."))
    try:
        size = resolve_name(SHAPE_ENV)().create_unbacked_symint()
        expression(size), assumptions(size)
    except AttributeError as error:
        return lacks(f"{type(error.obj).__name__}.{error.name}")
    return ""


def lacks(name: str) -> str:
    """Return a sentence that names what is missing, and the way out."""
    return (
        f"torch {torch.__version__} has no {name}, which backend 'compiled' needs. Choose backend='reference', "
        f"or another version of torch"
    )


def _has(name: str) -> bool:
    """True if torch has the name. The lookup imports Inductor, as torch does when any optimizer is made."""
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def graph(function: Callable[..., Any], rules: Mapping[Any, Callable[..., Any]], examples: Sequence[Any]) -> Any:
    """Return a ``torch.fx.GraphModule`` of the function for any sizes and numbers. ``rules`` replace operators."""
    return resolve_name(MAKE_FX)(function, dict(rules), tracing_mode="symbolic")(*examples)


def compile_graph(graph: Any, examples: Sequence[Any], settings: Mapping[str, Any]) -> Callable[..., Any]:
    """Compile the graph by Inductor, with those of the settings that this torch has."""
    known = {name: value for name, value in settings.items() if _has(SETTING + name)}
    run: Callable[..., Any] = resolve_name(COMPILE)(graph, examples, options=known)
    return run


def expression(size: Any) -> Any:
    """Return sympy's expression of a size or number of a graph."""
    return size.node.expr


def assumptions(size: Any) -> list[tuple[Any, set[Any]]]:
    """Return torch's assumptions in the graph of this size: sympy's conditions, and the free symbols of each."""
    environment = size.node.shape_env
    fixed = environment.replacements.keys()
    return [(guard.expr, guard.expr.free_symbols - fixed) for guard in environment.guards]


def vector_bits() -> int:
    """Return the length of the vectors that Inductor writes code for on this machine; 0: none."""
    return int(resolve_name(VECTORS)().bit_width())


def is_gcc() -> bool:
    """True if Inductor's C++ compiler is known to be GCC."""
    return _has(IS_GCC) and bool(resolve_name(IS_GCC)())


def vector_flags() -> str:
    """Return the C++ compiler's flags for the vectors of this machine; empty if they are not known."""
    return str(getattr(resolve_name(VECTORS)(), "_arch_flags", ""))


@contextmanager
def vector_flags_set(flags: str) -> Iterator[None]:
    """Replace the flags that :func:`vector_flags` returns, which must be known, in this context."""
    vectors = resolve_name(VECTORS)()
    before = vectors._arch_flags
    vectors._arch_flags = flags
    try:
        yield
    finally:
        vectors._arch_flags = before


def copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source to its target."""
    together = getattr(torch, "_foreach_copy_", None)
    if together is not None:
        together(targets, sources)
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
