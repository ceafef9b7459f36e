"""Torch's modes may be entered and left between two steps: no table is made again for it, and every bit stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lionbits import PagedLion8bit
from lionbits.step import prepare
from lionbits_triton.optim import Lion, Lion4bit
from lionbits_triton.optim import PagedLion8bit as Paged

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "flop counter": lambda: FlopCounterMode(display=False),
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "profiler": torch.autograd.profiler.profile,
    "another default device": lambda: torch.device("meta"),
}

#: Steps that are taken inside a mode, out of four.
INSIDE = ((3, 4), (1, 2), (2, 4))


def run(kind: Callable[..., Any], mode: Callable[[], AbstractContextManager[Any]], inside: Sequence[int]) -> list[Any]:
    """Parameters and state after four steps, of which some are taken inside the mode."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((70, 64), (33,))]
    optimizer = kind(params, lr=0.01, weight_decay=0.1, cautious="mask", percentile_clipping=50)
    for step in range(1, 5):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        with mode() if step in inside else nullcontext():
            optimizer.step()
    return [*params, *(value for state in optimizer.state.values() for value in state.values())]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize(
    ("kind", "reference"),
    [(Lion, None), (Lion4bit, None), (Paged, partial(PagedLion8bit, backend="reference"))],
    ids=["32 bits", "4 bits", "paged"],
)
def test_modes_change_nothing(
    kind: Callable[..., Any], reference: Any, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, original = [], prepare.prepare

    def counted(*args: Any) -> None:
        prepared.append(len(args[0]))
        original(*args)

    monkeypatch.setattr(prepare, "prepare", counted)
    plain = run(kind, mode, ())
    ends = [run(kind, mode, inside) for inside in INSIDE]
    assert len(prepared) == 4
    if reference is not None:
        ends.append(run(reference, mode, ()))
    for end in ends:
        for one, other in zip(end, plain, strict=True):
            assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
