"""Wrong copies of lionbits: the installed sources with one text replaced, imported under another name.

A mutant is a small diff. It is imported as modules of its own, so the right ones stay unchanged beside it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import lionbits
import lionbits_reference

_ROOTS = {
    "lionbits_reference": Path(lionbits_reference.__path__[0]),
    "lionbits": Path(lionbits.__path__[0]),
}
#: Absolute imports of the packages that are copied.
_IMPORT = re.compile(r"(?m)^(?P<from>\s*from )(?P<package>lionbits(_reference)?)(?=[. ])")

_numbers = itertools.count()


class DoesNotApply(LookupError):
    """The text to replace is not there exactly once: the mutant has to follow the source."""


@dataclass(frozen=True)
class Edit:
    """Replace ``old``, which must stand exactly once in ``file`` (as ``lionbits_reference/update.py``), by ``new``."""

    file: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """Return the text of the file, edited.

        Raises:
            DoesNotApply: ``old`` does not stand there exactly once.
        """
        if (found := text.count(self.old)) != 1:
            raise DoesNotApply(f"{self.file} has {found} places that read {self.old!r}; there must be one")
        return text.replace(self.old, self.new)

    def check(self) -> None:
        """Check that the edit applies to its file, which is left unchanged.

        Raises:
            DoesNotApply: see :meth:`applied`.
        """
        self.applied((_ROOTS[self.file.split("/")[0]].parent / self.file).read_text())


@dataclass(frozen=True)
class PatchedImport:
    """A copy of both packages with some edits in it."""

    reference: ModuleType
    lionbits: ModuleType


@contextmanager
def patched_import(edits: Sequence[Edit]) -> Iterator[PatchedImport]:
    """Import a copy of both packages with these edits, for the duration of the context.

    Raises:
        DoesNotApply: an edit's text does not stand exactly once in its file.
    """
    for edit in edits:
        edit.check()
    finder = _Finder(f"mutant{next(_numbers)}_", edits)
    sys.meta_path.insert(0, finder)
    try:
        yield PatchedImport(
            importlib.import_module(finder.prefix + "lionbits_reference"),
            importlib.import_module(finder.prefix + "lionbits"),
        )
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.startswith(finder.prefix)]:
            del sys.modules[name]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Import finder for ``<prefix>lionbits...``: the files of ``lionbits...``, edited, with imports within the copy."""

    def __init__(self, prefix: str, edits: Sequence[Edit]) -> None:
        self.prefix = prefix
        self.edits = edits

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(self.prefix):
            return None
        file = self._file(fullname)
        if file is None:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=str(file), is_package=file.name == "__init__.py")

    def get_source(self, fullname: str) -> str:
        file = self._file(fullname)
        assert file is not None
        root = _ROOTS[fullname.removeprefix(self.prefix).split(".")[0]]
        text = file.read_text()
        for edit in self.edits:
            if edit.file == file.relative_to(root.parent).as_posix():
                text = edit.applied(text)
        return _IMPORT.sub(rf"\g<from>{self.prefix}\g<package>", text)

    def is_package(self, fullname: str) -> bool:
        file = self._file(fullname)
        return file is not None and file.name == "__init__.py"

    def _file(self, fullname: str) -> Path | None:
        package, *path = fullname.removeprefix(self.prefix).split(".")
        if package not in _ROOTS:
            return None
        base = _ROOTS[package].joinpath(*path)
        for file in (base / "__init__.py", base.with_suffix(".py")):
            if file.is_file():
                return file
        return None
