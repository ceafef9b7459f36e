"""Wrong arguments and settings raise TypeError or ValueError, which name them; nothing changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion8bit, interop

NUMBERS = (None, "x", [], {}, float("nan"), -1, 10**400, torch.ones(2), 1j)
BETAS = (
    None, 5, "xy", (), (0.9,), (0.9, 2), (0.9, "x"), (0.9, float("nan")), (0.9, 0.99, 0.999), {}, {"a": 1, "b": 2},
    torch.tensor([0.9, 0.99]), (None, None), (-1, 0.9), 10**400, (10**400, 0.5), (0.9, 0.99 + 1j), (True, 0.9),
)  # fmt: skip
READERS: dict[str, Callable[..., Any]] = {
    peer: getattr(interop, f"from_{peer.replace('-', '_')}") for peer in interop.WRITERS
}


def trained() -> Lion8bit:
    params = [nn.Parameter(torch.ones(64, 64)), nn.Parameter(torch.ones(7))]
    optimizer = Lion8bit(params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    return optimizer


OTHERS = [None, 5, "x", {}, [], nn.Linear(2, 2), Lion8bit, torch.optim.SGD(nn.Linear(1, 1).parameters())]


@pytest.mark.parametrize("value", OTHERS, ids=lambda value: type(value).__name__)
def test_what_is_no_optimizer_of_ours_is_named(value: object) -> None:
    optimizer = trained()
    words = r"optimizer=.*must be an optimizer of lionbits"
    for peer, write in interop.WRITERS.items():
        saved = write(optimizer)
        for call in (
            partial(READERS[peer], saved, value),
            partial(write, value),
            partial(interop.compare, saved, value),
        ):
            with pytest.raises(TypeError, match=words):
                call()
    for call in (partial(interop.from_optax, {}, value), partial(interop.to_optax, value)):
        with pytest.raises(TypeError, match=words):
            call()


@pytest.mark.parametrize("peer", interop.WRITERS)
def test_bad_betas_are_named(peer: str) -> None:
    optimizer = trained()
    saved = interop.WRITERS[peer](optimizer)
    for betas in BETAS:
        spoilt = copy.deepcopy(saved)
        for group in spoilt["param_groups"]:
            if "beta1" in group and isinstance(betas, (tuple, torch.Tensor)) and len(betas) == 2:
                group["beta1"], group["beta2"] = betas
            elif "beta1" in group:
                group["beta1"] = betas
            else:
                group["betas"] = betas
        with pytest.raises((TypeError, ValueError), match=r"beta"):
            READERS[peer](spoilt, optimizer)


@pytest.mark.parametrize("peer", interop.WRITERS)
def test_no_setting_of_a_group_ends_in_another_error(peer: str) -> None:
    """Whatever it is: it is refused, or it does not matter, as the peers' own flags may be anything that is true."""
    optimizer = trained()
    saved = interop.WRITERS[peer](optimizer)
    refused = 0
    for name in saved["param_groups"][0]:
        for value in NUMBERS:
            spoilt = copy.deepcopy(saved)
            spoilt["param_groups"][0][name] = value
            try:
                READERS[peer](spoilt, optimizer)
            except (TypeError, ValueError):
                refused += 1
    assert refused >= 2 * len(NUMBERS)  # lr and weight_decay at least
