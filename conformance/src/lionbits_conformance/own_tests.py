"""Faults in this repository's own code, put to its own tests: some test has to fail.

What a suite for any backend cannot see, as it has no name for it (a table of addresses, a cache), tests of the part do.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from .patched_import import Edit

_FAILED = re.compile(r"(?m)^(?:FAILED|ERROR) \S*?(?P<test>[^/\s]+\.py\S*)")


def rejected_by(package: ModuleType, edits: Sequence[Edit], tests: Sequence[Path], folder: Path) -> str | None:
    """The first test that fails with the edits made to a copy of the package, or None.

    Args:
        package: is copied as it is, and imported by its own name, in a process of its own.
        edits: their files begin with the package's name.
        tests: files of tests.
        folder: where the copy is written; it is left there.

    Raises:
        DoesNotApply: a text to replace does not stand there exactly once.
        RuntimeError: the tests did not run to an end or to a failure.
    """
    shutil.copytree(Path(package.__path__[0]), folder / package.__name__, ignore=shutil.ignore_patterns("__pycache__"))
    for edit in edits:
        file = folder / edit.file
        file.write_text(edit.applied(file.read_text()))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n0", *map(str, tests)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    failed = _FAILED.search(done.stdout)
    return failed["test"] if failed else None
