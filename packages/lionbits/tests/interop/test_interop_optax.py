"""optax's state: arrays in trees, by name or in order."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion, Lion4bit, Lion8bit, Lion32bit, interop

from ..family import assert_same, train


class ScaleByLionState:
    """What optax calls it, with what numpy has of an array."""

    def __init__(self, count: Any, mu: Any) -> None:
        self.count, self.mu = count, mu


@pytest.mark.parametrize("cls", [Lion32bit, Lion8bit, Lion4bit])
def test_optax_by_name_and_by_order(cls: type[Lion]) -> None:
    """A nested tree of arrays by names, or a list; there and back."""
    net = nn.Sequential(nn.Linear(64, 80), nn.Linear(80, 64))
    ours = cls(net.named_parameters())
    train(ours, list(net.parameters()), range(4))
    written = interop.to_optax(ours)
    assert interop.recognise(written) == "optax"
    assert (written["count"], list(written["mu"])) == (4, [name for name, _ in net.named_parameters()])
    tree = {outer: {leaf: written["mu"][f"{outer}.{leaf}"] for leaf in ("weight", "bias")} for outer in ("1", "0")}
    for state in (written, ScaleByLionState(torch.tensor(4), tree), {"count": 4, "mu": tree}):
        twin = copy.deepcopy(net)
        again = cls(twin.named_parameters())
        again.load_state_dict(interop.from_optax(state, again))
        assert all(row.exact == row.elements for row in interop.compare(state, again))
        assert_same(interop.to_optax(again)["count"], 4)
    listed = {"count": 4, "mu": list(written["mu"].values())}
    split = cls([{"params": list(net[0].parameters())}, {"params": list(net[1].parameters())}])
    split.load_state_dict(interop.from_optax(listed, split))
    assert torch.equal(split.momentum(net[1].bias), ours.momentum(net[1].bias))


def test_bad_optax_states_are_refused() -> None:
    net = nn.Linear(64, 80)
    ours = Lion8bit(net.named_parameters())
    weight, bias = torch.zeros(80, 64), torch.zeros(80)
    for state, words in (
        ({"mu": [weight, bias]}, "'count'"),
        ({"count": 1.5, "mu": [weight, bias]}, "count=1.5"),
        ({"count": 1, "mu": weight}, "mapping of names, or a list"),
        ({"count": 1, "mu": {"weight": weight}}, "bias"),
        ({"count": 1, "mu": [weight]}, r"\[2\] parameters, the state dict's \[1\]"),
        ({"count": 1, "mu": {"weight": weight.T, "bias": bias}}, r"\(64, 80\), the optimizer's parameter \(80, 64\)"),
        ((1, [weight, bias]), "ScaleByLionState"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            interop.from_optax(state, ours)
    with pytest.raises(ValueError, match="no state yet"):
        interop.to_optax(ours)
