"""A tiny GPT-2, something for it to read, and what a resumed run has to equal: every bit of the run it continues."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lionbits import Lion

from ..family import assert_same  # noqa: F401, TID252  # for the tests beside this

#: Small enough a threshold that the model's weights and adapters have 8-bit momentum, its biases have not.
SETTINGS = {"lr": 3e-3, "weight_decay": 0.1, "min_8bit_size": 512}

VOCABULARY, CONTEXT = 96, 16

#: Other people's deprecations are not our errors; what lionbits warns of is.
OTHERS_MAY_WARN = [pytest.mark.filterwarnings("default"), pytest.mark.filterwarnings("error:betas=|accelerate is set")]


def tool(name: str) -> Any:
    """Import somebody else's package, whatever it warns of meanwhile; skip the module where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"nox -s ecosystem has {name}")


def gpt2() -> nn.Module:
    """GPT-2 with two layers of width 32; the same random weights at every call, nothing downloaded."""
    transformers = tool("transformers")
    sizes = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    model: nn.Module = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **tokens))
    return model


def texts(count: int) -> list[dict[str, Tensor]]:
    """Sequences as transformers' models take them, the same at every call."""
    tokens = torch.randint(VOCABULARY, (count, CONTEXT), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": line, "labels": line} for line in tokens]


def batch(step: int) -> dict[str, Tensor]:
    """Four of those sequences, others at each step."""
    lines = texts(64)[4 * step : 4 * step + 4]
    return {key: torch.stack([line[key] for line in lines]) for key in lines[0]}


def outcome(model: nn.Module, optimizer: Lion) -> dict[str, Any]:
    """All that training has come to, by parameter name: values, decoded momentum, and state as it is stored."""
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    assert_eight_bits(optimizer, list(trained.values()))
    return {
        "values": {name: param.detach().clone() for name, param in trained.items()},
        "momentum": {name: optimizer.momentum(param) for name, param in trained.items()},
        "state": {name: dict(optimizer.state[param]) for name, param in trained.items()},
        "rates": [group["lr"] for group in optimizer.param_groups],
    }


def assert_eight_bits(optimizer: Lion, params: list[nn.Parameter]) -> None:
    """Assert that momentum is kept in bytes for all weights, which are some, and that it is not zero."""
    weights = [param for param in params if param.ndim > 1]
    assert weights
    for param in weights:
        codes = optimizer.state[param]["exp_avg_codes"]
        assert (codes.dtype, codes.shape) == (torch.uint8, param.shape)
        assert codes.any()
