"""Parameters that are frozen: left alone, whatever they are, and refused by name when they are no longer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lionbits import Lion

from .family import Variant, assert_same, snapshot, train, weights

FROZEN = {
    "integers": lambda: torch.arange(6, dtype=torch.uint8),
    "float64": lambda: torch.ones(3, dtype=torch.float64),
    "float8": lambda: torch.ones(3, 2).to(torch.float8_e4m3fn),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "truth values": lambda: torch.ones(3, dtype=torch.bool),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "mkldnn": lambda: torch.ones(3, 3).to_mkldnn(),
    "meta": lambda: torch.ones(3, device="meta"),
}


@pytest.mark.parametrize("kind", FROZEN)
def test_what_is_frozen_is_left_alone(variant: Variant, kind: str) -> None:
    """Weights of any dtype and layout that a model holds beside its trainable ones, such as float8 under LoRA.

    In construction, in a group that comes later, in steps, checkpoints, copies and in how it is shown.
    """
    packed, late = (nn.Parameter(FROZEN[kind](), requires_grad=False) for _ in range(2))
    (param,) = weights(torch.bfloat16, [(64, 64)])
    optimizer = variant([packed, param], param_rounding="stochastic")
    optimizer.add_param_group({"params": late})
    optimizer.init_state()
    train(optimizer, [param], [1])
    assert list(optimizer.state) == [param]
    assert "refused" not in repr(optimizer)
    assert not packed.requires_grad
    if kind not in ("sparse", "mkldnn", "meta"):
        assert torch.equal(packed, FROZEN[kind]())
        assert not optimizer.momentum(packed).any()
    (other,) = weights(torch.bfloat16, [(64, 64)])
    target = variant([packed, other], param_rounding="stochastic")
    target.add_param_group({"params": late})
    target.load_state_dict(optimizer.state_dict())
    assert_same(target.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("kind", ["float64", "float8", "complex"])
def test_what_is_no_longer_frozen_is_refused_by_name(kind: str) -> None:
    """As soon as it has a gradient, or is made to require one before an optimizer is made."""
    (param,) = weights(shapes=[(64, 64)])
    packed = nn.Parameter(FROZEN[kind](), requires_grad=False)
    optimizer = Lion([packed, param])
    train(optimizer, [param], [1])
    packed.grad = torch.zeros_like(packed)
    before = snapshot(optimizer)["state"]
    with pytest.raises((TypeError, ValueError), match=f"dtype=torch.{packed.dtype}".replace("torch.torch", "torch")):
        optimizer.step()
    assert_same(snapshot(optimizer)["state"], before)
    with pytest.raises((TypeError, ValueError), match="is not accepted"):
        Lion([packed])
