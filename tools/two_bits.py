"""What two bits could be: held-out loss with other scales and levels than those that lionbits has.

Trains what ``lionbits-bench quality`` trains, with the reference's codec replaced at two bits. A row goes to ``--out``
after each run; what is there is not run again, so several processes can share the work: give each its ``--seeds``.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

import lionbits
from lionbits_bench import quality
from lionbits_cli import corpus as corpora
from lionbits_cli.corpus import Corpus
from lionbits_cli.training import Run
from lionbits_reference import formats
from lionbits_reference.spec import Format

#: The codec as it is, before anything is replaced.
ABSMAX, CODE, VALUE = formats.block_absmax, formats.code, formats.value


class Codec(NamedTuple):
    """What a block's scale is, and which levels it multiplies: -1, 0, 1, or -1.5, -0.5, 0.5, 1.5."""

    scale: Callable[[Tensor], Tensor]  # of magnitudes (rows, blocks, elements)
    four_levels: bool = False


CODECS = {
    "largest": Codec(lambda magnitudes: magnitudes.amax(dim=-1)),  # what lionbits has
    "half of the largest": Codec(lambda magnitudes: 0.5 * magnitudes.amax(dim=-1)),
    "1.25 of the mean": Codec(lambda magnitudes: 1.25 * magnitudes.mean(dim=-1)),
    "1.5 of the mean": Codec(lambda magnitudes: 1.5 * magnitudes.mean(dim=-1)),
    "1.75 of the mean": Codec(lambda magnitudes: 1.75 * magnitudes.mean(dim=-1)),
    "four levels, mean": Codec(lambda magnitudes: magnitudes.mean(dim=-1), four_levels=True),
}

B2 = (0.99, 0.95, 0.9)


@contextmanager
def replaced(codec: Codec) -> Iterator[None]:
    """The reference's codec at two bits. What is larger than the largest level is held at it."""

    def scale(m: Tensor, format: Format) -> Tensor:
        return codec.scale(formats._in_blocks(m, format).abs()) if format.bits == 2 else ABSMAX(m, format)

    def code(m: Tensor, inverse: Tensor, limit: Tensor, lane: Tensor, format: Any) -> Tensor:
        if format.bits != 2:
            return CODE(m, inverse, limit, lane, format)
        place = (m * inverse + 1.5).clamp(0.0, 3.0)  # of the level: where it lies between 0 and 3
        return (place + lane * 2.0**-16).floor().clamp(max=3.0).to(torch.int32)

    def value(code: Tensor, format: Any) -> Tensor:
        return code.to(torch.float32) - 1.5 if format.bits == 2 else VALUE(code, format)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(formats, "block_absmax", scale))
        if codec.four_levels:
            stack.enter_context(mock.patch.object(formats, "code", code))
            stack.enter_context(mock.patch.object(formats, "value", value))
        yield


def trained(seed: int, steps: int, corpus: Corpus, **settings: Any) -> float:
    """Held-out loss after the last step."""
    config = replace(quality.DEFAULT, backend="reference", seed=seed, steps=steps, eval_every=steps)
    run = Run(config, corpus)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "optim_bits=2 is for research", UserWarning)
        common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "seed": seed}
        run.optimizer = lionbits.Lion(run.model.parameters(), **common, **settings, backend="reference")
    while run.step < steps:
        run.advance()
    return run.evaluate()


def finished(out: Path) -> dict[tuple[str, float, int], float]:
    """Losses by codec, b2 and seed."""
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return {(name, b2, seed): loss for name, b2, seed, loss in map(json.loads, lines)}


def show(losses: dict[tuple[str, float, int], float]) -> None:
    """A line for each codec and b2: mean and deviation over seeds, and how far from 32 bits with b2 = 0.99."""
    full = {seed: loss for (name, b2, seed), loss in losses.items() if (name, b2) == ("32 bits", B2[0])}
    for name, b2 in dict.fromkeys((name, b2) for name, b2, _ in losses):
        held = {seed: loss for (other, at, seed), loss in losses.items() if (other, at) == (name, b2)}
        against = [100 * (loss - full[seed]) / fmean(full.values()) for seed, loss in held.items() if seed in full]
        spread = stdev(held.values()) if len(held) > 1 else float("nan")
        difference = f"{fmean(against):+.2f} %" if against else "-"
        print(f"| {name} | {b2} | {fmean(held.values()):.4f} | {spread:.4f} | {difference} | {len(held)} |")


def main() -> None:
    """Train what is missing, and show all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("lionbits-out/two-bits.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=quality.DEFAULT.steps)
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS), metavar="NAME")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    corpus = corpora.load()
    for seed in given.seeds:
        for name, b2 in [(name, b2) for b2 in B2 for name in ("32 bits", *given.codecs)]:
            if (name, b2, seed) in finished(given.out):
                continue
            bits = 32 if name == "32 bits" else 2
            with replaced(CODECS.get(name, CODECS["largest"])):
                loss = trained(seed, given.steps, corpus, optim_bits=bits, betas=(0.9, b2))
            with given.out.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps([name, b2, seed, loss]) + "\n")
    show(finished(given.out))


if __name__ == "__main__":
    main()
