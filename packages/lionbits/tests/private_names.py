"""Finds the private names of torch and Triton that a source takes, without running it.

What begins with an underscore and is not defined in the same distribution is somebody else's. To that come modules and
names without one that no documentation has.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

#: Of the standard library, documented.
STANDARD = {"_getframe", "_asdict", "_replace", "_fields", "_make", "_ArgumentGroup"}

#: Modules without an underscore that are not documented.
MODULES = re.compile(
    r"^triton\.(backends|compiler|knobs|runtime)\b|^(torch|triton)(\.\w+)*\._(?!_)"
    r"|^torch\.distributed\.checkpoint\.planner_helpers\b"
)

#: Names without an underscore that are not documented.
NAMES = {"TensorGuards", "profile_hook_step", "hooked", "DTensorSpec", "TensorMeta", "InterpretedFunction"}
NAMES |= {
    "compute_local_shape_and_global_offset",
    "interpreter_builder",
    "sanitize_overflow",
    "GPUTarget",
    "set_active",
}


def sources(package: Path) -> dict[Path, ast.Module]:
    """Every module of a package."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))}


def defined(trees: Sequence[ast.Module]) -> set[str]:
    """Names with an underscore that these modules make."""
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return {name for name in found if name.startswith("_")}


def taken(tree: ast.Module, ours: set[str]) -> set[str]:
    """Private names that a module takes from elsewhere: modules whole, of all else the last part."""
    return set(_taken(tree, ours))


def _taken(tree: ast.Module, ours: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if MODULES.search(alias.name))
            case ast.ImportFrom(module=str(module), names=names, level=0):
                full = [f"{module}.{alias.name}" for alias in names]
                yield from (module for _ in full[:1] if MODULES.search(module))
                yield from (name for name in full if MODULES.search(name) and not MODULES.search(module))
                yield from (alias.name for alias in names if alias.name in NAMES)
            case ast.Attribute(attr=name) if _is_private(name, ours):
                yield name
            case ast.Constant(value=str(text)) if MODULES.search(text) and text.isascii() and " " not in text:
                yield text
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(value=name), *_]):
                yield from (each for each in (name,) if _is_private(name, ours))
            case ast.keyword(arg=str(name)) if name in NAMES:
                yield name


def _is_private(name: str, ours: set[str]) -> bool:
    own = name in ours or name in STANDARD or (name.startswith("__") and name.endswith("__"))
    return name in NAMES or (name.startswith("_") and not own)
