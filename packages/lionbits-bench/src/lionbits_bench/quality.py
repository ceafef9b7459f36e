"""Held-out loss of every variant of the state, over seeds: the small transformer of ``lionbits train``, many times.

All variants of a seed start from the same weights, see the same data in the same order and follow the same learning
rate, so that their differences are paired. A finished run is never repeated: a killed comparison goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import lionbits
from lionbits_cli import corpus as corpora
from lionbits_cli import variants
from lionbits_cli.config import TrainConfig
from lionbits_cli.console import CommandError, require, show
from lionbits_cli.corpus import Corpus
from lionbits_cli.progress import progress
from lionbits_cli.results import write_json
from lionbits_cli.training import Run, environment, postponed_interrupt

from . import quality_chart, quality_table
from .quality_table import BASELINE, Outcome

SCHEMA = 1
RESULTS = "results.json"
EVALUATIONS = 10  # of a run
HEAD_WIDTH = 32
#: A run, where nothing else is asked for.
DEFAULT = TrainConfig(variant="lion", steps=2500, batch=16, context=64, layers=2, width=64, heads=64 // HEAD_WIDTH)
USAGE, INTERRUPTED = 2, 130  # exit codes: as argparse has it, and as a shell reports a Ctrl-C

QLIONS: dict[str, Any] = {"optim_bits": 4, "state_format": "e0m3"}

#: Settings of Lion by name; rounding is dithered where nothing else is said.
VARIANTS: dict[str, dict[str, Any]] = {
    BASELINE: {"optim_bits": 32},
    "8 bits": {"optim_bits": 8},
    "4 bits": {"optim_bits": 4},
    "8 bits stochastic": {"optim_bits": 8, "rounding": "stochastic"},
    "4 bits stochastic": {"optim_bits": 4, "rounding": "stochastic"},
    "8 bits nearest": {"optim_bits": 8, "rounding": "nearest"},
    "4 bits nearest": {"optim_bits": 4, "rounding": "nearest"},
    "linear 4 bits": QLIONS,
    "linear 4 bits nearest": {**QLIONS, "rounding": "nearest"},
    "linear 4 bits nearest, one scale": {**QLIONS, "rounding": "nearest", "block_wise": False},  # QLion's own
    "2 bits": {"optim_bits": 2},
    "32 bits, b2 = 0.95": {"optim_bits": 32, "betas": (0.9, 0.95)},  # what others with this b2 are to be held against
    "8 bits, b2 = 0.95": {"optim_bits": 8, "betas": (0.9, 0.95)},
    "4 bits, b2 = 0.95": {"optim_bits": 4, "betas": (0.9, 0.95)},
    "32 bits, b2 = 0.9": {"optim_bits": 32, "betas": (0.9, 0.9)},
    "2 bits, b2 = 0.95": {"optim_bits": 2, "betas": (0.9, 0.95)},
    "2 bits, b2 = 0.9": {"optim_bits": 2, "betas": (0.9, 0.9)},
    "2 bits, blocks of 32": {"optim_bits": 2, "block_size": 32},
    "no momentum": {"optim_bits": 32, "betas": (0.0, 0.0)},  # what needs no state at all
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``quality`` with its options to the command line."""
    parser = commands.add_parser(
        "quality",
        help="held-out loss of every variant, over seeds, with a chart",
        description="Train the small transformer of `lionbits train` with every variant and seed. What is in the "
        "folder already is not trained again. Exit code 0: all done; 2: wrong settings; 130: interrupted.",
    )
    parser.add_argument("--steps", type=int, default=DEFAULT.steps, help="of a run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME",
                        help=f"some of: {'; '.join(VARIANTS)} (default: all)")  # fmt: skip
    parser.add_argument("--layers", type=int, default=DEFAULT.layers, help="transformer blocks (default: %(default)s)")
    parser.add_argument("--width", type=int, default=DEFAULT.width, help="features per position (default: %(default)s)")
    parser.add_argument("--context", type=int, default=DEFAULT.context, help="bytes per window (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=DEFAULT.batch, help="windows per step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=DEFAULT.lr, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--backend", help="name of the backend (default: the best that serves)")
    parser.add_argument("--out", type=Path, default=Path("lionbits-out/quality"), help="folder (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress, the table only")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Train the missing runs and show everything; return the exit code."""
    try:
        require("matplotlib", "rich")
        return _compare(given)
    except CommandError as error:
        print(f"lionbits-bench quality: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on after the last finished run.", file=sys.stderr)
        return INTERRUPTED


def _compare(given: argparse.Namespace) -> int:
    shared, corpus = _shared(given), corpora.load()
    conditions = _conditions(shared, corpus)
    outcomes = _load(given.out / RESULTS, conditions)
    plan = list(_missing(given.variants, given.seeds, outcomes))
    for name, _ in plan:  # an error in the last variant is raised now, not after the others have trained
        _optimizer([torch.nn.Parameter(torch.zeros(1))], shared, VARIANTS[name])
    for number, (name, seed) in enumerate(plan, start=1):
        label = f"{number}/{len(plan)}  {name}, seed {seed}"
        outcomes.append(_train(name, replace(shared, seed=seed), corpus, label, quiet=given.quiet))
        _write(given.out, conditions, outcomes)
    rows = _write(given.out, conditions, outcomes)
    show(quality_table.terminal(rows))
    print(f"{given.out / 'quality.md'}, quality.png and {RESULTS} beside it")
    return 0


def _shared(given: argparse.Namespace) -> TrainConfig:
    if given.seeds < 1:
        raise CommandError(f"--seeds must be at least 1, not {given.seeds}")
    return replace(
        DEFAULT,
        backend=given.backend,
        steps=given.steps,
        batch=given.batch,
        context=given.context,
        lr=given.lr,
        layers=given.layers,
        width=given.width,
        heads=max(1, given.width // HEAD_WIDTH),
        eval_every=max(1, given.steps // EVALUATIONS),
    )


def _conditions(shared: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """Return all settings that runs must share to be compared."""
    settings = {key: value for key, value in shared.as_dict().items() if key not in {"variant", "bits", "seed"}}
    return {"config": settings, "corpus": corpus.digest, "environment": environment()}


def _missing(names: Sequence[str], seeds: int, outcomes: Sequence[Outcome]) -> Iterator[tuple[str, int]]:
    """Yield missing runs seed by seed, so that a comparison cut short has all variants, if fewer seeds."""
    done = {(outcome.variant, outcome.seed) for outcome in outcomes}
    pairs = ((name, seed) for seed in range(seeds) for name in dict.fromkeys(names))
    return (pair for pair in pairs if pair not in done)


def _optimizer(
    parameters: Sequence[torch.nn.Parameter], config: TrainConfig, settings: Mapping[str, Any]
) -> lionbits.Lion:
    common: dict[str, Any] = {
        "lr": config.lr, "weight_decay": config.weight_decay, "seed": config.seed, "backend": config.backend,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "optim_bits=2 is for research", UserWarning)
        try:
            return lionbits.Lion(parameters, **common, **settings)
        except (TypeError, ValueError, ImportError) as error:
            raise CommandError(f"{dict(settings)}: {error}") from error


def _train(name: str, config: TrainConfig, corpus: Corpus, label: str, *, quiet: bool) -> Outcome:
    run = Run(config, corpus)
    run.optimizer = _optimizer(list(run.model.parameters()), config, VARIANTS[name])
    with progress(label, run, quiet=quiet) as after_step, postponed_interrupt() as stop_asked:
        while run.step < config.steps:
            run.advance()
            if run.evaluation_due:
                run.evaluate()
            after_step(run)
            if stop_asked():
                raise KeyboardInterrupt
    packed = sum(p.numel() for p, state in run.optimizer.state.items() if "exp_avg_codes" in state)
    return Outcome(
        variant=name,
        settings=json.loads(json.dumps(VARIANTS[name])),  # as it will be read back: a pair is a list there
        seed=config.seed,
        validation=run.history.validation,
        parameters=run.parameters,
        packed_parameters=packed,
        state_bytes=variants.state_bytes(run.optimizer),
        skipped_elements=int(run.optimizer.skipped_elements()),
        seconds=run.history.seconds,
        optimizer_seconds=run.history.step_seconds,
    )


def _load(path: Path, conditions: Mapping[str, Any]) -> list[Outcome]:
    """Return finished runs, except those of variants that have changed since.

    Runs under other conditions are neither mixed in nor overwritten.
    """
    if not path.exists():
        return []
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        outcomes = [Outcome.of(entry) for entry in saved["runs"]]
        differing = [key for key in conditions if saved[key] != conditions[key]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{path} cannot be read ({error}); choose another --out") from error
    if differing:
        changes = "; ".join(f"{key}: {saved[key]}, now {conditions[key]}" for key in differing)
        raise CommandError(f"{path} holds runs that differ from these in {changes}. Choose another --out")
    current = json.loads(json.dumps(VARIANTS))
    return [outcome for outcome in outcomes if current.get(outcome.variant) == outcome.settings]


def _write(out: Path, conditions: Mapping[str, Any], outcomes: Sequence[Outcome]) -> list[quality_table.Row]:
    """Write all files anew: the samples first, as table and chart can be made of them again."""
    runs = [outcome.as_json() for outcome in outcomes]
    write_json(out / RESULTS, {"schema": SCHEMA, "suite": "quality", **conditions, "runs": runs})
    rows = quality_table.rows(outcomes, list(VARIANTS))
    quality_table.save(rows, conditions, out / "quality.md")
    quality_chart.draw(rows, out / "quality.png")
    return rows
