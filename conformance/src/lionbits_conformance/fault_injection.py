"""Backends with a fault injected, for their own tests: a conformance suite and an emulator have to find it.

:mod:`~lionbits_conformance.patched_import` edits Python as it is imported. This module copies a whole package to a
folder, as kernels are compiled from files.
"""

from __future__ import annotations

import importlib
import itertools
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from .patched_import import Edit

_numbers = itertools.count()


@contextmanager
def with_fault(package: ModuleType, edits: Sequence[Edit], folder: Path) -> Iterator[ModuleType]:
    """Import a copy of ``package`` with the edits under another name, for the duration of the context.

    Args:
        package: a backend whose modules import each other relatively.
        edits: their files are named from the package's folder, as ``noise.py``.
        folder: where the copy is written; it is left there.

    Raises:
        DoesNotApply: a text to replace does not stand there exactly once.
    """
    name = f"{package.__name__}_faulty{next(_numbers)}"
    source = Path(package.__path__[0])
    copy = folder / name
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for edit in edits:
        file = copy / edit.file
        file.write_text(edit.applied(file.read_text()))
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        for module in [module for module in sys.modules if module.split(".")[0] == name]:
            del sys.modules[module]
