"""The command line: ``lionbits train``, ``report``, ``convert``, ``doctor`` and ``memory``.

Each command is a module with ``add_arguments(parser)`` and ``run(args) -> int``; a new one is a line in
``COMMANDS``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import convert, doctor, memory, report, train
from .console import CommandError

COMMANDS = {
    "train": (
        train,
        "train a small transformer on Python's own standard library, with one variant or several",
    ),
    "report": (report, "QLion's detailed test: loss, quantisation coverage, gradient and update norms"),
    "convert": (convert, "the optimizer state of another Lion's checkpoint for this one, or the reverse"),
    "doctor": (doctor, "what each backend can do on this machine, and why not"),
    "memory": (memory, "bytes per variant for a number of parameters, beside AdamW"),
}
USAGE = 2  # the exit code argparse uses for arguments it cannot accept


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    top = argparse.ArgumentParser(prog="lionbits", description="Lion with 32-, 8-, 4- and 2-bit state.")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="command")
    for name, (module, summary) in COMMANDS.items():
        description = (module.__doc__ or "").replace("``", "")
        command = subparsers.add_parser(name, help=summary, description=description)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit code of the process."""
    args = parser().parse_args(argv)
    try:
        code: int = args.run(args)
    except CommandError as error:
        print(f"lionbits {args.command}: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return code
