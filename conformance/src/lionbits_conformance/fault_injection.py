"""Backends with a fault injected, for their own tests: a conformance suite and an emulator have to find it.

:mod:`~lionbits_conformance.patched_import` edits Python as it is imported. This module copies a whole package to a
folder, as kernels are compiled from files.
"""

from __future__ import annotations

import importlib
import itertools
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from .patched_import import Edit

_numbers = itertools.count()


@contextmanager
def with_fault(
    package: ModuleType, edits: Sequence[Edit], folder: Path, beside: Sequence[ModuleType] = ()
) -> Iterator[ModuleType]:
    """Import a copy of ``package`` with the edits under another name, for the duration of the context.

    Args:
        package: a backend whose modules import each other relatively.
        edits: their files are named from the package's folder, as ``noise.py``, or with a package's name before it.
        folder: where the copy is written; it is left there.
        beside: packages that it imports by their names and that are copied, and may be edited, too.

    Raises:
        DoesNotApply: a text to replace does not stand there exactly once.
    """
    suffix = f"_with_fault{next(_numbers)}"
    for each in (package, *beside):
        _copy(each, folder / f"{each.__name__}{suffix}", [other.__name__ for other in beside], suffix)
    for edit in edits:
        named, _, rest = edit.file.partition("/")
        known = named in [each.__name__ for each in (package, *beside)]
        file = folder / (f"{named}{suffix}/{rest}" if known else f"{package.__name__}{suffix}/{edit.file}")
        file.write_text(edit.applied(file.read_text()))
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        yield importlib.import_module(f"{package.__name__}{suffix}")
    finally:
        sys.path.remove(str(folder))
        for module in [module for module in sys.modules if module.split(".")[0].endswith(suffix)]:
            del sys.modules[module]


def _copy(package: ModuleType, copy: Path, renamed: Sequence[str], suffix: str) -> None:
    """Copy a package; what its modules import from renamed ones comes from their copies."""
    shutil.copytree(Path(package.__path__[0]), copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file in copy.rglob("*.py"):
        text = file.read_text()
        for name in renamed:
            text = re.sub(rf"(?m)^(\s*from ){name}(?=[. ])", rf"\g<1>{name}{suffix}", text)
        file.write_text(text)
