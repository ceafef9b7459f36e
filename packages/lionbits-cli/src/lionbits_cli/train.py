"""``lionbits train``: a small language model on real text, with any variant, or with several side by side."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import charts, corpus, options, results, targets, variants
from . import config as configs
from .config import TrainConfig
from .console import CommandError, printable, require, show
from .progress import progress
from .results import Result
from .training import CHECKPOINT, Interrupted, Run, environment, load_checkpoint, train

DEFAULT_OUT = Path("lionbits-out")
COMPARISON = "comparison.json"  # what a comparison runs, so that it can be resumed as a whole
PROMPT = b"\ndef "
SAMPLE_LENGTH = 400
FILES = (CHECKPOINT, "metrics.json", "loss.png", "sample.txt")  # of a run
SAMPLE_SHOWN, SAMPLE_WIDTH = 8, 100  # lines and columns on the screen; the file has it all
TEMPERATURE = 0.7
INTERRUPTED = 130  # what a shell reports for a process that Ctrl-C ended

add_arguments = options.add_arguments


def run(args: argparse.Namespace) -> int:
    """Train one variant or compare several, fresh or resumed."""
    require("matplotlib", "rich")
    try:
        if args.resume is not None and args.resume.is_dir():
            return resume_comparison(args)
        if args.resume is not None:
            return resume_single(args)
        return compare(args) if args.compare else single(args)
    except Interrupted as stop:
        print(f"\nStopped after step {stop.step}; saved {stop.checkpoint}. Continue with:", file=sys.stderr)
        print(f"  lionbits train --resume {shlex.quote(str(stop.resume))}", file=sys.stderr)
        return INTERRUPTED


def single(args: argparse.Namespace) -> int:
    """Train one variant from its beginning."""
    folder = args.out or DEFAULT_OUT
    refuse_mixing(folder)
    state = Run(configs.fresh(args), corpus.load())
    targets.prepare_folder(folder, FILES)
    return report_single(finish(state, folder, quiet=args.quiet), folder)


def resume_single(args: argparse.Namespace) -> int:
    """Continue one variant from a checkpoint, in the checkpoint's own folder unless another is given."""
    checkpoint = load_checkpoint(args.resume)
    if args.compare:
        raise CommandError("--compare resumes from the folder of the comparison, not from one checkpoint")
    folder = args.out or args.resume.parent
    state = revive(configs.resumed(checkpoint["config"], args), checkpoint, args.resume)
    targets.prepare_folder(folder, FILES)
    return report_single(finish(state, folder, quiet=args.quiet), folder)


def revive(config: TrainConfig, checkpoint: dict[str, Any], path: Path) -> Run:
    """Rebuild the run a checkpoint describes, and say so if this machine may round a sum differently."""
    state = Run(config, corpus.load())
    try:
        state.restore(checkpoint)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CommandError(f"cannot continue from the checkpoint {path}: {error}") from error
    for name, value in environment().items():
        if checkpoint["environment"].get(name) != value:
            was = checkpoint["environment"].get(name)
            print(f"note: {name} was {was}, is {value}; the last bits of a loss may differ", file=sys.stderr)
    return state


def finish(state: Run, folder: Path, *, quiet: bool) -> Result:
    """Train to the last step and write all files of one run."""
    label = state.config.variant
    with progress(label, state, quiet=quiet) as after_step:
        train(state, folder, after_step)
    if not state.history.validation:  # it was interrupted before the first evaluation, and nothing is left to train
        state.evaluate()
    result = Result.of(state)
    results.write_json(folder / "metrics.json", result.as_json())
    charts.training_chart([result], folder / "loss.png")
    sample = state.model.generate(PROMPT, SAMPLE_LENGTH, TEMPERATURE, state.config.seed)
    text = sample.decode("utf-8", errors="replace").lstrip()
    (folder / "sample.txt").write_text(text + "\n", encoding="utf-8")
    if not quiet:
        shown = "\n".join(f"  | {printable(line)[:SAMPLE_WIDTH]}" for line in text.splitlines()[:SAMPLE_SHOWN])
        print(f"{label} writes:\n{shown}\n")
    return result


def report_single(result: Result, folder: Path) -> int:
    """Print the table and where the files are."""
    show(results.table([result]))
    print(f"{folder / 'loss.png'}, metrics.json, sample.txt and {CHECKPOINT} beside it")
    return 0


def compare(args: argparse.Namespace) -> int:
    """Train variants from the same weights on the same data; the first is the one to compare with."""
    names = list(dict.fromkeys(variants.canonical(name) for name in args.compare))
    if args.paged:
        names = [variants.paged(name) for name in names]
    args.variant = names[0]
    shared = configs.fresh(args)
    folder = args.out or DEFAULT_OUT
    plan = [replace(shared, variant=name) for name in names]
    for config in plan:  # an error in the last variant is raised now, not after the others have trained
        variants.build(config, [torch.nn.Parameter(torch.zeros(1))])
    prepare_comparison(folder, names)
    for name in names:  # a resumed comparison must not mistake an older one's checkpoints for its own
        (folder / name / CHECKPOINT).unlink(missing_ok=True)
    results.write_json(folder / COMPARISON, {"variants": names, "config": shared.as_dict()})
    return finish_comparison(plan, folder, quiet=args.quiet)


def resume_comparison(args: argparse.Namespace) -> int:
    """Continue a comparison where it stopped; finished variants are only drawn again."""
    folder = args.resume
    try:
        saved = json.loads((folder / COMPARISON).read_text(encoding="utf-8"))
        names, shared = saved["variants"], saved["config"]
        sound = isinstance(shared, dict) and isinstance(names, list) and names and set(names) <= {*variants.VARIANTS}
    except (OSError, ValueError, RecursionError) as error:
        raise CommandError(f"{folder} holds no comparison to resume: {error}") from error
    except (KeyError, TypeError):
        sound = False
    if not sound:
        raise CommandError(f"{folder / COMPARISON} is damaged: it does not name variants and their settings")
    if args.compare or args.out not in {None, folder}:
        raise CommandError("a comparison resumes with its own variants in its own folder")
    config = configs.resumed(shared, args)
    prepare_comparison(folder, names)
    plan = [replace(config, variant=name) for name in dict.fromkeys(names)]
    return finish_comparison(plan, folder, quiet=args.quiet)


def finish_comparison(plan: list[TrainConfig], folder: Path, *, quiet: bool) -> int:
    """Train what is not trained yet, one model in memory at a time, then draw them all."""
    finished = []
    for config in plan:
        place = folder / config.variant
        checkpoint = place / CHECKPOINT
        begun = checkpoint.exists()
        state = revive(config, load_checkpoint(checkpoint), checkpoint) if begun else Run(config, corpus.load())
        try:
            finished.append(finish(state, place, quiet=quiet))
        except Interrupted as stop:
            stop.resume = folder  # the comparison continues as a whole
            raise
    charts.training_chart(finished, folder / "loss.png")
    results.write_json(folder / "metrics.json", results.comparison_json(finished))
    show(results.table(finished))
    print(f"{folder / 'loss.png'} and metrics.json; a sub-folder per variant")
    return 0


def prepare_comparison(folder: Path, names: Iterable[str]) -> None:
    """Make the folders of a comparison, and check that its files can be written."""
    targets.prepare_folder(folder, (COMPARISON, "metrics.json", "loss.png"))
    for name in names:
        targets.prepare_folder(folder / name, FILES)


def refuse_mixing(folder: Path) -> None:
    """Refuse a single run in the folder of a comparison, whose chart it would overwrite."""
    if (folder / COMPARISON).exists():
        raise CommandError(f"{folder} holds a comparison; choose another --out")
