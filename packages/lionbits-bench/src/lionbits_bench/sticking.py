"""``lionbits-bench sticking``: how momentum of few bits follows a gradient that changes its sign.

All elements have the gradient 1 for 70 steps. Then the first of each block keeps it, so that the scale of the block
stays, and the others have -0.2. Momentum of 32 bits is negative after 115 more steps. Momentum that is rounded to
nearest stays where it is: a step changes it by less than half the distance of two codes.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import lionbits

from .quality import QLIONS

#: Elements; those at every multiple of ANCHOR keep the first gradient.
ELEMENTS, ANCHOR = 4096, 128

#: Steps with the gradient 1, and the gradient after them.
BEFORE, AFTER = 70, -0.2

Decode = Callable[[torch.optim.Optimizer, Tensor], Tensor]


class Curve(NamedTuple):
    """The momentum of one optimizer.

    Attributes:
        name: of the optimizer.
        means: over the elements that follow, after each step.
        turned: steps after the change at which their mean was negative first; None: never.
    """

    name: str
    means: list[float]
    turned: int | None


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "sticking",
        help="how momentum follows a gradient that changes its sign, drawn",
        description="Draw the momentum of each optimizer after 70 gradients of 1, while gradients are -0.2, and print "
        "after how many steps it is negative. On the CPU, with bitsandbytes if it is installed.",
    )
    parser.add_argument("--steps", type=int, default=1500, help="after the change (default: %(default)s)")
    parser.add_argument("--chart", type=Path, default=Path("lionbits-out/sticking.png"), help="(default: %(default)s)")
    parser.set_defaults(run=lambda given: run(given.steps, given.chart))


def run(steps: int, chart: Path) -> int:
    """Print the table and draw the chart; return the exit code."""
    curves = [follow(name, make, decode, steps) for name, (make, decode) in optimizers().items()]
    print("| momentum | negative after |\n|---|---|")
    for curve in curves:
        print(f"| {curve.name} | {'never' if curve.turned is None else f'{curve.turned} steps'} |")
    draw(curves, chart)
    print(f"\n{chart.resolve()}")
    return 0


def optimizers() -> dict[str, tuple[Callable[[list[Tensor]], torch.optim.Optimizer], Decode]]:
    """Return what is compared: how each is made, and how its momentum is read."""
    found: dict[str, tuple[Callable[[list[Tensor]], torch.optim.Optimizer], Decode]] = {}
    ours: dict[str, dict[str, Any]] = {
        "lionbits, 32 bits": {},
        "lionbits, 8 bits": {"optim_bits": 8},
        "lionbits, 4 bits": {"optim_bits": 4},
        "8 bits, rounded to nearest": {"optim_bits": 8, "rounding": "nearest"},
        "QLion's rule, 4 bits": {**QLIONS, "rounding": "nearest", "block_wise": False},
    }
    for name, settings in ours.items():
        found[name] = (partial(lionbits.Lion, lr=2**-10, **settings), _momentum)
    if importlib.util.find_spec("bitsandbytes") is not None:
        theirs: Any = importlib.import_module("bitsandbytes").optim.Lion8bit
        found["bitsandbytes Lion8bit"] = (partial(theirs, lr=2**-10), _theirs)
    return found


def _momentum(optimizer: Any, param: Tensor) -> Tensor:
    momentum: Tensor = optimizer.momentum(param)
    return momentum


def _theirs(optimizer: torch.optim.Optimizer, param: Tensor) -> Tensor:
    """Return bitsandbytes' momentum: a table's values, times the largest of each block of 256."""
    state = optimizer.state[param]
    blocks: Tensor = state["qmap1"][state["state1"].long()].view(-1, 256)
    scales: Tensor = state["absmax1"].view(-1, 1)
    return blocks * scales


def follow(name: str, make: Callable[[list[Tensor]], torch.optim.Optimizer], decode: Decode, steps: int) -> Curve:
    """Give an optimizer these gradients and return the momentum of the elements that follow them."""
    param = torch.nn.Parameter(torch.zeros(1, ELEMENTS))
    optimizer = make([param])
    anchored = torch.arange(ELEMENTS) % ANCHOR == 0
    means = []
    for step in range(BEFORE + steps):
        param.grad = torch.where(anchored, 1.0, 1.0 if step < BEFORE else AFTER).view(1, -1)
        optimizer.step()
        means.append(decode(optimizer, param).view(-1)[~anchored].mean().item())
    turned = next((j for j, mean in enumerate(means[BEFORE:]) if mean < 0), None)
    return Curve(name, means, turned)


def draw(curves: list[Curve], path: Path) -> None:
    """Draw the momentum over steps after the change."""
    from lionbits_cli.charts import INK, PALETTE, drawing

    path.parent.mkdir(parents=True, exist_ok=True)
    with drawing(path, 9.0, 4.2) as figure:
        axes = figure.subplots()
        axes.axhline(0, color=INK, linewidth=0.8)
        for place, curve in enumerate(curves):
            ours, colour = curve.name.startswith("lionbits"), PALETTE[place % len(PALETTE)]
            steps = range(-BEFORE, len(curve.means) - BEFORE)
            label = curve.name if ours else None
            axes.plot(steps, curve.means, "-" if ours else "--", color=colour, linewidth=2, label=label)
            if not ours:
                axes.annotate(
                    curve.name, (steps[-1], curve.means[-1]), xytext=(0, 4), textcoords="offset points", ha="right",
                    color=colour,
                )  # fmt: skip
        axes.set_xlabel("steps after the gradient changed from 1 to -0.2")
        axes.set_ylabel("momentum")
        axes.set_ylim(top=1.15)
        axes.set_title("Momentum that is rounded to nearest does not follow the gradient")
        axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 0.05))
