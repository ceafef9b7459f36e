"""What a conversion cost: the momentum in a peer's state dict beside the momentum that an optimizer holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lionbits import options

from .ours import matched
from .reading import Reading

if TYPE_CHECKING:
    from lionbits.optimizer import Lion


@dataclass(frozen=True)
class Difference:
    """One parameter's momentum there and here.

    Attributes:
        name: of the parameter, or its position.
        shape: of the parameter.
        elements: their number.
        theirs: how the peer holds it.
        ours: how the optimizer does.
        exact: elements that are equal.
        largest: the largest difference, in units of the root mean square of the peer's momentum.
        rms: the root mean square difference, in the same units. Both are 0 where all is equal.
    """

    name: str
    shape: tuple[int, ...]
    elements: int
    theirs: str
    ours: str
    exact: int
    largest: float
    rms: float


def differences(reading: Reading, optimizer: Lion, names: Sequence[str] | None = None) -> list[Difference]:
    """One for each parameter with state in the reading, in the optimizer's order.

    Raises:
        TypeError, ValueError: the two do not hold the same parameters.
    """
    found, position = [], 0
    for group, keys in zip(optimizer.param_groups, matched(reading, optimizer, names), strict=True):
        known = group.get("param_names") or [str(position + i) for i in range(len(keys))]
        position += len(keys)
        for name, param, key in zip(known, group["params"], keys, strict=True):
            if key not in reading.held:
                continue
            held = reading.held[key]
            before, after = held.exp_avg.double(), optimizer.momentum(param).to(held.exp_avg.device).double()
            if before.shape != after.shape:
                raise ValueError(
                    f"{name} has momentum of shape {tuple(before.shape)} there, {tuple(after.shape)} here."
                )
            gap = (after - before).abs()
            unit = before.square().mean().sqrt()
            exact = int((gap == 0).sum())
            largest, rms = (0.0, 0.0) if exact == gap.numel() else (
                float(gap.amax() / unit), float(gap.square().mean().sqrt() / unit)
            )  # fmt: skip
            form = str(options.plan(group, param, param.dtype).format)
            found.append(Difference(name, tuple(param.shape), gap.numel(), held.form, form, exact, largest, rms))
    return found
