"""The command line. torch is imported after the arguments are parsed."""

from __future__ import annotations

import argparse
import faulthandler
import re
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

#: Seconds after the time that was given when a run that hangs is ended; what it found by then is written.
PATIENCE = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; return the exit code."""
    begin = time.monotonic()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser("lionbits-bench", description="Measure lionbits beside a copy and its peers.")
    commands = parser.add_subparsers(dest="command", required=True)
    run, gpu, sass, compare = _add_run(commands), _add_gpu(commands), _add_sass(commands), _add_compare(commands)
    roofline = _add_roofline(commands)
    _add_quality(commands, asked="quality" in arguments[:1])
    _add_sticking(commands, asked="sticking" in arguments[:1])
    given = parser.parse_args(arguments)
    if given.command == "run":
        return _run(run, given)
    if given.command == "gpu":
        return _gpu(gpu, given, begin)
    if given.command == "sass":
        return _sass(sass, given)
    if given.command == "roofline":
        return _roofline(roofline, given)
    if given.command == "compare":
        return _compare(compare, given)
    code: int = given.run(given)
    return code


def _add_run(commands: Commands) -> argparse.ArgumentParser:
    run = commands.add_parser(
        "run",
        help="a step of every variant and backend, beside a copy and every peer that is installed",
        description="Check what each optimizer computes, then time its step on lists of parameters and over sizes. "
        "Writes tables, charts and every sample. Exit code 0: all of lionbits was measured; 1: something of it failed.",
    )
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    run.add_argument("--backends", type=_names, help="such as cpp,reference (default: all that serve; on a GPU "
                     "without the reference)")  # fmt: skip
    run.add_argument("--workloads", nargs="+", metavar="NAME", help="some of: tensor resnet50 vit gpt2 llama small "
                     "channels-last (default: all but the last)")  # fmt: skip
    run.add_argument("--variants", nargs="+", metavar="NAME", help="some of: 32 8 4 mask compensated dithered; the "
                     "last two are of bf16 parameters (default: all)")  # fmt: skip
    run.add_argument("--peers", nargs="+", metavar="NAME", default=["all"], help="all, none, or names of libraries, as "
                     "torch bitsandbytes (default: all)")  # fmt: skip
    run.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), help="of parameters and gradients (default: fp32 "
                     "on the CPU, both on a GPU)")  # fmt: skip
    run.add_argument("--rounds", type=int, default=5, help="turns of each candidate (default: %(default)s)")
    run.add_argument("--seconds", type=float, default=0.5, help="of timing in a turn (default: %(default)g)")
    run.add_argument("--limit", type=float, default=180.0, help="seconds after which a turn is ended, compiling "
                     "included (default: %(default)g)")  # fmt: skip
    run.add_argument("--out", type=Path, default=Path("lionbits-out/bench"), help="folder (default: %(default)s)")
    run.add_argument("--quick", action="store_true", help="two tiny lists, two rounds: does it all work?")
    return run


def _add_gpu(commands: Commands) -> argparse.ArgumentParser:
    gpu = commands.add_parser(
        "gpu",
        help="everything that needs a GPU, in one call",
        description="Conformance, speed, host time, paging, launches and recorded steps on a CUDA device, in one call "
        "that ends in time. Exit code 0: all done; 1: something failed; 3: something was not reached.",
    )
    gpu.add_argument("--dry-run", action="store_true", help="the same on the CPU, tiny: does it all work?")
    gpu.add_argument("--out", type=Path, default=Path("lionbits-out/gpu"), help="folder (default: %(default)s)")
    gpu.add_argument("--backends", type=_names, help="such as triton,reference (default: all fast ones that serve)")
    gpu.add_argument("--parts", nargs="+", metavar="NAME", help="of: conformance speed host paging launches replay "
                     "(default: all)")  # fmt: skip
    gpu.add_argument("--managed", action="store_true", help="let in peers that page by managed memory, which may hang "
                     "a machine that others use")  # fmt: skip
    gpu.add_argument("--minutes", type=_minutes, default=9.0, help="that it may take in all (default: %(default)g)")
    return gpu


def _add_sass(commands: Commands) -> argparse.ArgumentParser:
    listing = commands.add_parser(
        "sass",
        help="what the compiler makes of a backend's kernels, on any machine",
        description="Print a row of markdown for every plan: registers, stack, 16-byte accesses and instructions per "
        "element. The exit code counts kernels with faults, which are listed.",
    )
    listing.add_argument("--backend", default="triton", help="which has a module `compiled` (default: %(default)s)")
    listing.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100], help="compute capabilities, as 90")
    listing.add_argument("--bits", type=int, nargs="+", default=[32, 8, 4, 2], help="of the momentum")
    listing.add_argument("--caution", nargs="+", metavar="NAME", help="as Lion's `cautious` (default: all)")
    return listing


def _add_roofline(commands: Commands) -> argparse.ArgumentParser:
    roofline = commands.add_parser(
        "roofline",
        help="what instructions leave of a copy's bandwidth, predicted on any machine",
        description="Compile the plans that most people take, count instructions per element, and print how much of a "
        "copy's bandwidth they allow on GPUs that need not be there.",
    )
    roofline.add_argument("--backend", nargs="+", metavar="NAME", default=["triton", "cupy"], help="(default: both)")
    roofline.add_argument("--gpu", nargs="+", metavar="NAME", help="some of: A100 H100 H200 4090 L4 (default: all)")
    roofline.add_argument("--chart", type=Path, help="a PNG to draw")
    return roofline


def _add_compare(commands: Commands) -> argparse.ArgumentParser:
    compare = commands.add_parser(
        "compare",
        help="two results.json, row by row",
        description="Print the ratio of medians of every row, and where they differ by more than both spread.",
    )
    compare.add_argument("first", type=Path, help="results.json of `run` or `gpu`")
    compare.add_argument("second", type=Path, help="another one")
    return compare


def _add_quality(commands: Commands, *, asked: bool) -> None:
    """Add the options of training, which import torch: other commands do not wait for that."""
    if not asked:
        commands.add_parser("quality", help="held-out loss of every variant, over seeds, with a chart")
        return
    from . import quality

    quality.add_parser(commands)


def _add_sticking(commands: Commands, *, asked: bool) -> None:
    """Add the options of the test of momentum, which imports torch."""
    if not asked:
        commands.add_parser("sticking", help="how momentum follows a gradient that changes its sign, drawn")
        return
    from . import sticking

    sticking.add_parser(commands)


def _compare(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    from . import compare

    try:
        return compare.run(given.first, given.second)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def _run(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    import torch

    from . import candidates, peers, run, workloads

    cuda = given.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    if not (given.rounds >= 1 and given.seconds > 0 and given.limit > 0):
        parser.error("--rounds, --seconds and --limit must be positive")
    lists = given.workloads or (workloads.FEW if given.quick else workloads.NAMES[:-1])
    libraries = {"all": peers.NAMES, "none": ()}.get(given.peers[0]) if len(given.peers) == 1 else None
    variants = given.variants and _some(parser, "--variants", given.variants, candidates.SHORT)
    choice = run.Choice(
        device=given.device,
        backends=given.backends,
        workloads=_some(parser, "--workloads", lists, workloads.NAMES),
        variants=variants and [candidates.SHORT[name] for name in variants],
        peers=_some(parser, "--peers", given.peers, peers.NAMES) if libraries is None else libraries,
        dtypes=given.dtypes or (["bf16", "fp32"] if cuda else ["fp32"]),
        rounds=min(given.rounds, 2) if given.quick else given.rounds,
        seconds=min(given.seconds, 0.05) if given.quick else given.seconds,
        limit=given.limit,
        quick=given.quick,
    )
    return run.run(choice, given.out)


def _some(parser: argparse.ArgumentParser, option: str, names: Sequence[str], known: Collection[str]) -> list[str]:
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"{option}: there is no {unknown[0]!r}; known are {', '.join(known)}")
    return list(dict.fromkeys(names))


def _sass(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    from lionbits_reference.spec import CAUTIONS

    from . import sass

    caution = _some(parser, "--caution", given.caution or CAUTIONS, CAUTIONS)
    try:
        return sass.run(given.backend, given.arch, given.bits, caution)
    except (ImportError, RuntimeError, FileNotFoundError) as error:
        parser.error(str(error))


def _roofline(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    from . import roofline

    short = {re.sub(r"RTX | SXM.*", "", gpu.name): gpu for gpu in roofline.GPUS}
    gpus = [short[name] for name in _some(parser, "--gpu", given.gpu or list(short), short)]
    try:
        return roofline.run(given.backend, gpus, given.chart)
    except (ImportError, RuntimeError, FileNotFoundError) as error:
        parser.error(str(error))


def _gpu(parser: argparse.ArgumentParser, given: argparse.Namespace, begin: float) -> int:
    import torch

    from . import gpu

    if not given.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --dry-run tries everything on the CPU")
    parts = given.parts and _some(parser, "--parts", given.parts, gpu.PARTS)
    faulthandler.dump_traceback_later(60 * given.minutes + PATIENCE, exit=True, file=2)
    try:
        suite = (gpu.dry_run if given.dry_run else gpu.full)(managed=given.managed)
        gone = time.monotonic() - begin
        return gpu.run(suite, given.backends, given.out, given.minutes, gone, parts)
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
