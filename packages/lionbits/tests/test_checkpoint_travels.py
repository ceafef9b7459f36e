"""A run that moves between backends, and between resident and paged state, is the run that never moved."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion, select

from .family import Variant, assert_same, train, weights

#: Whole blocks; odd rows that end in a short block; too short to quantise.
SHAPES = [(64, 64), (35, 131), (33,)]


def _moved(optimizer: Lion, params: list[nn.Parameter], **settings: Any) -> tuple[Lion, list[nn.Parameter]]:
    """The run, saved to a file and loaded without its code into a Lion with other backend, paging and budget."""
    file = io.BytesIO()
    torch.save({"params": [param.detach() for param in params], "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    mine = [nn.Parameter(param) for param in loaded["params"]]
    bits = loaded["optimizer"]["param_groups"][0]["optim_bits"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "optim_bits=2", UserWarning)
        target = Lion(mine, optim_bits=bits, **settings)
    target.load_state_dict(loaded["optimizer"])
    return target, mine


@pytest.mark.parametrize("backend", ["cpp", "triton", "cupy"])
def test_there_and_back_is_staying(variant: Variant, backend: str) -> None:
    """Reference, then another backend with the other paging, then the reference again: the same bits."""
    _there_and_back(variant, backend)


def _there_and_back(variant: Variant, backend: str) -> None:
    reason = select.diagnose(backend, torch.device("cpu"))
    if reason:
        pytest.skip(f"{backend}: {reason}")
    params = weights(torch.bfloat16, SHAPES)
    settings = {"lr": 0.01, "weight_decay": 0.1, "param_rounding": "compensated", "seed": 5}
    optimizer = variant(params, backend="reference", **settings)
    train(optimizer, params, [1, 2])
    stayed_params, stayed = copy.deepcopy((params, optimizer))
    away, away_params = _moved(optimizer, params, backend=backend, is_paged=not variant.paged)
    train(away, away_params, [3])
    back, back_params = _moved(away, away_params, backend="reference", is_paged=variant.paged)
    train(back, back_params, [4])
    train(stayed, stayed_params, [3, 4])
    assert_same(back.state_dict()["state"], stayed.state_dict()["state"])
    assert_same([param.data for param in back_params], [param.data for param in stayed_params])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_resident_and_paged_take_turns(variant: Variant, dtype: torch.dtype) -> None:
    """At every step the run moves between memory that it has for itself and pages, with norms and all."""
    params = weights(dtype, SHAPES)
    optimizer: Lion = variant(params, lr=0.01, percentile_clipping=50)
    stayed_params, stayed = copy.deepcopy((params, optimizer))
    moved, moved_params = optimizer, params
    for step in range(1, 5):
        train(stayed, stayed_params, [step])
        train(moved, moved_params, [step])
        moved, moved_params = _moved(moved, moved_params, is_paged=bool(step % 2) != variant.paged)
    assert_same(moved.state_dict()["state"], stayed.state_dict()["state"])
    assert_same([param.data for param in moved_params], [param.data for param in stayed_params])
