"""What users may rely on, as text: run this file to write ``public_api.txt`` again, whose diff a reviewer reads."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

FILE = Path(__file__).with_name("public_api.txt")

#: What each distribution has for others; of a package without ``__all__``, the names of its modules.
MODULES = (
    *("lionbits", "lionbits.interop", "lionbits_reference", "lionbits_reference.spec"),
    *(f"lionbits_{backend}{part}" for backend in ("cpp", "triton", "cupy") for part in ("", ".optim")),
    *("lionbits_table", "cuda_on_cpu", "ptx_on_cpu", "lionbits_conformance", "lionbits_conformance.fault_injection"),
    *("lionbits_conformance.mutation_testing", "lionbits_conformance.mutants", "lionbits_conformance.oracle"),
)


def names(module: ModuleType) -> list[str]:
    """The public names of a module: ``__all__``, else what it defines and the modules it contains."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    inside = [found.name for found in pkgutil.iter_modules(getattr(module, "__path__", ()))]
    return sorted(name for name in {*own, *inside} if not name.startswith("_"))


def described(name: str, value: object) -> Iterator[str]:
    """A name with its signature; below a class of ours, its own public methods and attributes."""
    if inspect.isclass(value):
        bases = ", ".join(f"{base.__module__.split('.')[0]}.{base.__name__}" for base in value.__bases__)
        yield f"class {name}({bases})"
        if not _made_like_its_base(value):
            yield _indented(f"__init__{_signature(value)}")
        for key, member in sorted(vars(value).items()):
            if not key.startswith("_") and not _wraps_its_bases(value, key):
                yield _indented(_member(key, member))
    elif callable(value):
        yield f"{name}{_signature(value)}"
    else:
        yield f"{name}: {type(value).__name__}"


def _wraps_its_bases(value: type, key: str) -> bool:
    """Whether torch has put it there: around the ``step`` of each optimizer's class, when one is made."""
    member = inspect.unwrap(vars(value)[key]) if callable(vars(value)[key]) else None
    return member is not None and any(inspect.unwrap(getattr(base, key, len)) is member for base in value.__bases__)


def _made_like_its_base(value: type) -> bool:
    if issubclass(value, BaseException):
        return True
    ours = [base for base in value.__bases__ if base.__module__.startswith("lionbits") and base.__name__[0] != "_"]
    return _signature(value) in map(_signature, ours)


def _member(name: str, value: object) -> str:
    inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    kind = "" if inner is value else f"{type(value).__name__} "
    return f"{kind}{name}{_signature(inner) if callable(inner) else ''}"


def _signature(value: Callable[..., Any]) -> str:
    """As text, a parameter per line where it is long, so that a new one is a new line."""
    text = re.sub(r"ForwardRef\('([^']*)'\)|(?<=: |> )'([^']*)'", r"\1\2", str(inspect.signature(value)))
    if len(text) < 100:
        return text
    *body, result = re.split(r", (?=\*{0,2}\w+(?::|=)|\*, )|(?=\)(?: -> [^)]*)?$)", text.removeprefix("("))
    return "".join(("(", *(f"\n    {part}," for part in body), f"\n{result}"))


def _indented(text: str) -> str:
    return textwrap.indent(text, "    ")


def listing(module_name: str) -> str:
    """All of one module."""
    module = importlib.import_module(module_name)
    lines = [f"# {module_name}"]
    for name in names(module):
        lines += described(name, getattr(module, name)) if hasattr(module, name) else [f"{name}: module"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text("\n".join(map(listing, MODULES)), encoding="utf-8")
