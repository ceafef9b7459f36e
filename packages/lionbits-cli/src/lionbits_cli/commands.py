"""The commands and their exit codes.

Each command is a module with ``add_arguments(parser)`` and ``run(args) -> int``; a new one is a line in
``COMMANDS``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import lionbits

from . import convert, doctor, memory, report, train
from .console import CommandError, sentence

COMMANDS = {
    "train": (
        train,
        "train a small transformer on Python's own standard library, with one variant or several",
    ),
    "report": (report, "QLion's detailed test: loss, quantisation coverage, gradient and update norms"),
    "convert": (convert, "the optimizer state of another Lion's checkpoint for this one, or the reverse"),
    "doctor": (doctor, "what each backend can do on this machine, and why not"),
    "memory": (
        memory,
        "bytes per variant for a number of parameters, shapes or a model, beside AdamW and bitsandbytes",
    ),
}
USAGE = 2  # the exit code argparse uses for arguments it cannot accept, and ours for all that cannot be done
UNHEARD = 141  # what a shell reports for a process that wrote to a pipe which nobody reads any more


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    top = argparse.ArgumentParser(prog="lionbits", description="Lion with 32-, 8-, 4- and 2-bit state.")
    top.add_argument("--version", action="version", version=f"lionbits {lionbits.__version__}")
    subparsers = top.add_subparsers(dest="command", metavar="command")
    for name, (module, summary) in COMMANDS.items():
        description = (module.__doc__ or "").replace("``", "")
        command = subparsers.add_parser(name, help=summary, description=description)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return top


def run(argv: Sequence[str] | None) -> int:
    """Run one command; return the exit code of :func:`lionbits_cli.main`."""
    _open_streams()
    top = parser()
    args = top.parse_args(argv)
    if args.command is None:
        top.print_help()
        return 0
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except CommandError as error:
        return _failed(args.command, error)
    except BrokenPipeError:
        _flush_or_discard()
        return UNHEARD
    except OSError as error:
        _flush_or_discard()
        return _failed(args.command, error)
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        return _failed(args.command, "there is not enough memory for this; take a smaller model, batch or context")
    return code


def _flush_or_discard() -> None:
    """Write buffered output, or discard it if it cannot be written: Python flushes once more when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(command: str, reason: object) -> int:
    print(f"lionbits {command}: {sentence(str(reason))}", file=sys.stderr)
    return USAGE


def _is_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _open_streams() -> None:
    """Replace closed streams (``>&-``) by the null device, and characters that a stream's encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
