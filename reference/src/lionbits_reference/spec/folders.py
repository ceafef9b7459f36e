"""The folder in which files are kept from one process to the next."""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: The folder, if it shall not be the user's.
CACHE = "LIONBITS_CACHE"


def cache_folder(name: str) -> Path:
    """Return the folder of a cache: ``LIONBITS_CACHE``, else ``lionbits/<name>`` among the caches of the user.

    Raises:
        RuntimeError: the account has no home.
    """
    if chosen := os.environ.get(CACHE):
        return Path(chosen)
    user = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    # the specification of XDG wants relative paths ignored
    root = Path(user) if Path(user).is_absolute() else Path.home() / ".cache"
    return root / "lionbits" / name
