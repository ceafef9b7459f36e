"""``python -m lionbits_conformance.vectors write DIR | check``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import HERE, stale, write


def main(arguments: list[str] | None = None) -> int:
    """Write the vectors, or check that the committed ones are what the oracle says; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lionbits_conformance.vectors", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write", help="write every file into a folder")
    writing.add_argument("folder", type=Path)
    commands.add_parser("check", help="compare the committed files with what the oracle writes")
    chosen = parser.parse_args(arguments)
    if chosen.command == "write":
        for path in write(chosen.folder):
            print(f"{path}  {path.stat().st_size} bytes")
        return 0
    found = stale()
    for name in found:
        print(f"{HERE / name} is not what the oracle writes: run the command `write {HERE}`", file=sys.stderr)
    if not found:
        print("the committed vectors are what the oracle writes")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
