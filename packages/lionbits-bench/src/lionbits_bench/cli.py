"""The command line."""

from __future__ import annotations

import argparse
import faulthandler
import time
from collections.abc import Sequence
from pathlib import Path

from lionbits_reference.spec import CAUTIONS

#: Seconds after the time that was given when a run that hangs is ended; what it found by then is written.
PATIENCE = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; the result is the exit code."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser("lionbits-bench", description="Measure lionbits beside a copy and its peers.")
    commands = parser.add_subparsers(dest="command", required=True)
    gpu = commands.add_parser(
        "gpu",
        help="everything that needs a GPU, in one call",
        description="The court, speed, host time, launches and recorded steps on a CUDA device, in one call that ends "
        "in time. Exit code 0: all done; 1: something failed; 3: something was not reached.",
    )
    gpu.add_argument("--dry-run", action="store_true", help="the same on the CPU, tiny: does it all work?")
    gpu.add_argument("--out", type=Path, default=Path("lionbits-out/gpu"), help="folder (default: %(default)s)")
    gpu.add_argument("--backends", type=_names, help="such as triton,reference (default: all fast ones that serve)")
    gpu.add_argument("--minutes", type=_minutes, default=9.0, help="that it may take in all (default: %(default)g)")
    listing = commands.add_parser(
        "sass",
        help="what the compiler makes of a backend's kernels, on any machine",
        description="Print a row of markdown for every plan: registers, stack, 16-byte accesses and instructions per "
        "element. The exit code counts kernels with faults, which are told.",
    )
    listing.add_argument("--backend", default="triton", help="which has a module `compiled` (default: %(default)s)")
    listing.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100], help="compute capabilities, as 90")
    listing.add_argument("--bits", type=int, nargs="+", default=[32, 8, 4, 2], help="of the momentum")
    listing.add_argument("--caution", nargs="+", choices=CAUTIONS, default=CAUTIONS)
    given = parser.parse_args(arguments)
    return _gpu(gpu, given, begin) if given.command == "gpu" else _sass(listing, given)


def _sass(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    from . import sass

    try:
        return sass.run(given.backend, given.arch, given.bits, given.caution)
    except (ImportError, RuntimeError, FileNotFoundError) as error:
        parser.error(str(error))


def _gpu(parser: argparse.ArgumentParser, given: argparse.Namespace, begin: float) -> int:
    import torch

    from . import gpu

    if not given.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --dry-run tries everything on the CPU")
    faulthandler.dump_traceback_later(60 * given.minutes + PATIENCE, exit=True, file=2)
    try:
        programme = gpu.trial() if given.dry_run else gpu.full()
        return gpu.run(programme, given.backends, given.out, given.minutes, time.monotonic() - begin)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("names of backends, with commas between them")
    return list(dict.fromkeys(names))


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0.5 <= minutes < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of minutes, at least 0.5")
    return minutes
