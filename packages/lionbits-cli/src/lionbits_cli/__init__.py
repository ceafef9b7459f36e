"""The command line: ``lionbits train``, ``report``, ``convert``, ``doctor`` and ``memory``.

Importing this package imports nothing else: Ctrl-C also ends the command while it imports torch, in one line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

INTERRUPTED = 130  # what a shell reports for a process that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code of the process.

    0: done. 1: a check failed (``report``), or the backend asked for cannot serve (``doctor``). 2: it is impossible,
    for a reason that one sentence on stderr gives. 130: interrupted. 141: the reader of the output has gone.
    """
    try:
        from .commands import run

        return run(argv)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
