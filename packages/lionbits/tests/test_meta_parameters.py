"""Parameters on the meta device: an optimizer takes them, a step does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lionbits import Lion, Lion8bit

from .family import assert_same


def test_parameters_that_to_empty_has_replaced_are_refused_by_name() -> None:
    """Their gradients never come: a step over them would do nothing, in silence."""
    with torch.device("meta"):
        model = nn.Linear(64, 64)
    optimizer = Lion8bit(model.parameters())
    model.to_empty(device="cpu")
    model(torch.ones(2, 64)).sum().backward()
    with pytest.raises(RuntimeError, match=r"\(64, 64\) is on the meta device.*to_empty.*make the optimizer after"):
        optimizer.step()
    assert not optimizer.state


def test_frozen_meta_parameters_are_left_alone() -> None:
    frozen = nn.Parameter(torch.empty(64, 64, device="meta"), requires_grad=False)
    trained, alone = (nn.Parameter(torch.ones(64, 64)) for _ in range(2))
    optimizer, other = Lion([frozen, trained], rounding="nearest"), Lion([alone], rounding="nearest")
    for param, held in ((trained, optimizer), (alone, other)):
        param.grad = torch.ones(64, 64)
        held.step()
    assert_same(trained.detach(), alone.detach())
    assert set(optimizer.state) == {trained}


def test_parameters_that_become_real_in_place_are_updated() -> None:
    """As ``torch.utils.swap_tensors`` and ``param.data =`` make them."""
    param, alone = nn.Parameter(torch.empty(64, 64, device="meta")), nn.Parameter(torch.ones(64, 64))
    optimizer, other = Lion8bit([param]), Lion8bit([alone])
    optimizer.init_state()
    assert not optimizer.state
    torch.utils.swap_tensors(param, nn.Parameter(torch.ones(64, 64)))
    for one, held in ((param, optimizer), (alone, other)):
        one.grad = torch.ones(64, 64)
        held.step()
    assert_same(param.detach(), alone.detach())
    assert_same(optimizer.momentum(param), other.momentum(alone))
