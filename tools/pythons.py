"""The Python interpreters of this machine: those on the path, and those that pyenv keeps off it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

#: Versions that the packages support, oldest first.
SUPPORTED = ("3.10", "3.11", "3.12", "3.13", "3.14")


def interpreter(version: str) -> Path | None:
    """Return an interpreter of a version such as ``3.12``, or None if this machine has none that runs."""
    on_path = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for candidate in (on_path, *pyenv.glob(f"versions/{version}.*/bin/python")):
        if candidate and _version_of(candidate) == version:
            return Path(candidate)
    return None


def _version_of(candidate: str | Path) -> str:
    """Return what an interpreter says that it is; empty for a shim of pyenv with nothing behind it."""
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([candidate, "-c", ask], capture_output=True, text=True, check=False).stdout.strip()
