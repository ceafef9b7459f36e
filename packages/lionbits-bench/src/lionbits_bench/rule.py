"""Checks of an optimizer's rule before it is timed: it steps on a few tensors beside its rule in float64.

A step that leaves the weights as they were is fast, but no step. Gradients after the first are a tenth of its size, so
that momentum decides half of the signs; parameters are large enough for the weight decay to show in every one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .results import in_a_line

Build = Callable[[list[Tensor]], Optimizer]
Check = Callable[[Build, torch.device], str]

#: Settings of every candidate that knows them; the time of a step does not depend on their values.
COMMON: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.1}
B1, B2 = 0.9, 0.99

#: The first is large enough for whatever treats large tensors in another way, and whole blocks, as some ask for.
#: The last ends within a block.
SHAPES = ((300, 512), (257,), (33, 200))
STEPS = 3

#: Error of an update, in units of lr: three roundings of a parameter of magnitude 4 are 0.007.
TOLERANCE = 0.02

#: Error of the first update of AdamW: the sign of the gradient, but for epsilon and the rounding of state.
ADAMW_TOLERANCE = 0.1

RIGHT = "right"


def result(check: Check | None, build: Build, device: torch.device) -> str:
    """Return the result of the check, or the error in it, as text."""
    if check is None:
        return "not checked: a rule of its own"
    try:
        return check(build, device)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the answer
        return f"cannot be checked: {in_a_line(error)}"


def lion(build: Build, device: torch.device, allowed: float = 0.0) -> str:
    """Check against the paper, with the decay; ``allowed`` is the share of signs that rounded state may change.

    ::

        p' = p (1 - lr wd) - lr sign(b1 m + (1 - b1) g)        m' = b2 m + (1 - b2) g

    Signs that float32 may round to either side are not counted.
    """
    tensors = _tensors(device)
    optimizer, generator = build(tensors), torch.Generator().manual_seed(2)
    momenta = [torch.zeros(p.shape, dtype=torch.float64, device=device) for p in tensors]
    updates, wanted = [], []
    for number in range(STEPS):
        gradients, moved = _step(optimizer, tensors, 0.1 if number else 1.0, generator)
        for m, g, update in zip(momenta, gradients, moved, strict=True):
            c = B1 * m + (1 - B1) * g
            sure = c.abs() > 1e-6 * (m.abs() + g.abs())
            updates.append(update[sure])
            wanted.append(c.sign()[sure])
            m.copy_(B2 * m + (1 - B2) * g)
    return _verdict(torch.cat(updates), torch.cat(wanted), TOLERANCE, allowed)


def adamw(build: Build, device: torch.device) -> str:
    """Check the first step of AdamW: it changes every weight by lr, against the gradient, whatever holds its state."""
    tensors = _tensors(device)
    gradients, moved = _step(build(tensors), tensors, 1.0, torch.Generator().manual_seed(2))
    wanted = torch.cat([g.sign().flatten() for g in gradients])
    return _verdict(torch.cat([update.flatten() for update in moved]), wanted, ADAMW_TOLERANCE, 0.0)


def _tensors(device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in SHAPES]


def _step(
    optimizer: Optimizer, tensors: list[Tensor], size: float, generator: torch.Generator
) -> tuple[list[Tensor], list[Tensor]]:
    """Return gradients and the updates after a step: the parameters' loss beyond the decay, in units of lr."""
    drawn = [size * torch.randn(p.shape, generator=generator) for p in tensors]
    gradients = [g.to(p.device, torch.float64) for p, g in zip(tensors, drawn, strict=True)]  # some overwrite theirs
    before = [p.detach().double() for p in tensors]
    for p, g in zip(tensors, drawn, strict=True):
        p.grad = g.to(p.device)
    optimizer.step()
    lr, decay = COMMON["lr"], 1 - COMMON["lr"] * COMMON["weight_decay"]
    return gradients, [(q * decay - p.detach().double()) / lr for p, q in zip(tensors, before, strict=True)]


def _verdict(updates: Tensor, wanted: Tensor, tolerance: float, allowed: float) -> str:
    wrong = 1 - _share((updates - wanted).abs() <= tolerance)  # a NaN is wrong
    unmoved = _share(updates.abs() < 0.5)
    if unmoved > 0.5:
        return "weights unchanged" if unmoved == 1 else f"{100 * unmoved:.1f} % of weights unchanged"
    if wrong > allowed:
        return f"{_percent(wrong)} % of updates wrong"
    return RIGHT if not wrong else f"{RIGHT}, {_percent(wrong)} % of signs turned by rounded state"


def _share(where: Tensor) -> float:
    return float(where.double().mean())


def _percent(share: float) -> str:
    return f"{100 * share:.3g}" if share >= 0.1 else f"{100 * share:.2g}"
