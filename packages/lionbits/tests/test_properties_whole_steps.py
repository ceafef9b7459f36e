"""Whole optimizer steps against the model of Python scalars: parameters, codes, scales, rests and counts, every bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lionbits import Lion

from .family import FREE_GRADIENTS, free_gradients
from .test_properties_model import Model

ROWS, COLUMNS, STEPS = 3, 37, 15
FORMATS = [f"e{x}m{bits - 1 - x}" for bits in (8, 4, 2) for x in range(min(bits, 5))]
LEADING = 2  # parameters before the one that is looked at

pytestmark = pytest.mark.filterwarnings("ignore:optim_bits=2:UserWarning")


def gradient(model: Model, rng: np.random.Generator, kind: str, dtype: torch.dtype) -> torch.Tensor:
    """One gradient: normal, mostly zeros, ``"cancelling"`` (c is nearly zero), ``"broken"`` (with NaN and Inf)."""
    grad = rng.standard_normal(ROWS * COLUMNS) * 2.0 ** rng.integers(-12, 4)
    if kind == "sparse":
        grad *= rng.random(grad.size) < 0.1
        grad[::2] *= -1
    if kind == "cancelling":
        b1, sign = model.betas[0], -1 if model.maximize else 1
        exact = -np.array(model.m) * b1 / (1 - b1) * sign
        grad = np.where(rng.random(grad.size) < 0.8, exact * (1 + rng.integers(-2, 3, grad.size) * 2.0**-24), grad)
    if kind == "broken":
        grad[rng.integers(0, grad.size, 4)] = [np.nan, np.inf, -np.inf, 1.6e38]
    return torch.from_numpy(grad.astype(np.float32)).reshape(ROWS, COLUMNS).to(dtype)


def compare(model: Model, param: torch.Tensor, state: dict[str, Any]) -> None:
    """All that is stored is what the model holds."""
    assert state["step"] == model.count
    assert param.float().flatten().tolist() == model.p
    if model.bits == 32:
        assert state["exp_avg"].flatten().tolist() == model.m
    else:
        scales = state["exp_avg_scale"].flatten()
        assert torch.equal(scales.nan_to_num(-1.0), torch.tensor(model.scales).nan_to_num(-1.0))
        assert state["exp_avg_codes"].tolist() == model.packed()
    if model.param_rounding == "compensated" and model.param_bits == 16:
        unit = 1 if model.master_bits == 32 else 256
        assert (state["param_residual"].long() * unit).flatten().tolist() == model.rest
    if model.percentile_clipping < 100:
        assert sorted(state["grad_norms"].tolist()) == sorted(model.norms)


def run(
    options: dict[str, Any],
    dtype: torch.dtype,
    grad_dtype: torch.dtype,
    kinds: list[str],
    wide: bool,
    tensor_lr: bool = False,
) -> Model:
    """Fifteen steps of both, the learning rate changing, the parameter third over two groups."""
    rng = np.random.default_rng(options["seed"] % 2**32)
    start = torch.from_numpy(rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)).to(dtype)
    bits, name = options["optim_bits"], options["state_format"]
    x, y = (int(name[1]), int(name[3])) if bits < 32 else (8, 23)
    shared = ["rounding", "betas", "weight_decay", "cautious", "grad_clip", "percentile_clipping", "maximize"]
    shared += ["param_rounding", "master_bits", "nonfinite", "seed"]
    model = Model(
        start.float().flatten().tolist(), ROWS, COLUMNS, bits, x, y, 0 if wide else 32,
        index=LEADING, param_bits=32 if dtype == torch.float32 else 16, **{key: options[key] for key in shared},
    )  # fmt: skip
    param = torch.nn.Parameter(start.clone())
    if grad_dtype != dtype:
        free_gradients(param)
    groups = [{"params": [torch.nn.Parameter(torch.ones(40)) for _ in range(LEADING)]}, {"params": [param]}]
    block = {"block_wise": False} if wide else {"block_size": 32}
    optimizer = Lion(groups, lr=0.5, min_8bit_size=1, **block, **options)
    for count in range(1, STEPS + 1):
        lr = 0.01 / count
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor([lr], dtype=torch.float64) if tensor_lr else lr
        grad = gradient(model, rng, kinds[count % len(kinds)], grad_dtype)
        param.grad = grad.clone()
        optimizer.step()
        model.step(grad.float().flatten().tolist(), lr)
        compare(model, param, optimizer.state[param])
        assert torch.equal(param.grad.nan_to_num(7.0), grad.nan_to_num(7.0))
    assert optimizer.skipped_elements() == model.skipped
    if model.nonfinite == "skip":
        assert optimizer.momentum(param).flatten().tolist() == model.m
    return model


KINDS = ["normal", "sparse", "cancelling", "broken"]


@st.composite
def options(draw: st.DrawFn, /, **given_options: Any) -> dict[str, Any]:
    """Settings of a Lion with quantised momentum."""
    format = draw(st.sampled_from(FORMATS))
    drawn = {
        "optim_bits": 1 + int(format[1]) + int(format[3]),
        "state_format": format,
        "rounding": draw(st.sampled_from(["dithered", "stochastic", "nearest"])),
        "betas": draw(st.sampled_from([(0.9, 0.99), (0.95, 0.98), (0.0, 0.5), (0.3, 0.0)])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1, 3.0])),
        "cautious": draw(st.sampled_from([None, "mask", "c-optim", "timm", "gradient"])),
        "grad_clip": draw(st.sampled_from([0.0, 0.5, 10.0])),
        "percentile_clipping": draw(st.sampled_from([100, 90, 5])),
        "maximize": draw(st.booleans()),
        "param_rounding": draw(st.sampled_from(["nearest", "dithered", "stochastic", "compensated"])),
        "master_bits": draw(st.sampled_from([32, 24])),
        "nonfinite": "skip",
        "seed": draw(st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63 + 5, 2**64 - 1])),
    }
    return drawn | given_options


DTYPES = st.sampled_from([torch.bfloat16, torch.float32])
PLAIN = {
    "rounding": "dithered", "betas": (0.9, 0.99), "weight_decay": 0.1, "cautious": None, "grad_clip": 0.0, "seed": 0,
    "percentile_clipping": 100, "maximize": False, "param_rounding": "nearest", "master_bits": 32, "nonfinite": "skip",
}  # fmt: skip
E3M4 = {"optim_bits": 8, "state_format": "e3m4"}
E3M0 = {"optim_bits": 4, "state_format": "e3m0"}
E0M1 = {"optim_bits": 2, "state_format": "e0m1"}
KEPT = {"param_rounding": "compensated"}


@given(options(), DTYPES, DTYPES, st.permutations(KINDS), st.booleans())
@settings(max_examples=120, deadline=None, derandomize=True)
@example(PLAIN | E3M4, torch.float32, torch.float32, KINDS, False)
@example(PLAIN | E3M0 | {"cautious": "mask", "rounding": "stochastic"}, torch.bfloat16, torch.float32, KINDS, False)
@example(PLAIN | E0M1 | {"grad_clip": 0.5, "maximize": True}, torch.float32, torch.bfloat16, KINDS, False)
@example(PLAIN | E3M4 | KEPT, torch.bfloat16, torch.bfloat16, KINDS, False)
@example(PLAIN | E3M0 | KEPT | {"master_bits": 24}, torch.bfloat16, torch.float32, KINDS, False)
@example(PLAIN | E0M1 | {"param_rounding": "stochastic"}, torch.bfloat16, torch.float32, KINDS, True)
def test_quantised_steps_are_the_models(
    options: dict[str, Any], dtype: torch.dtype, grad_dtype: torch.dtype, kinds: list[str], wide: bool
) -> None:
    """Fifteen steps at 8, 4 and 2 bits, every format, rounding, caution and clipping, some gradients not finite."""
    assume(FREE_GRADIENTS or grad_dtype == dtype)
    run(options, dtype, grad_dtype, kinds, wide)


@given(options(optim_bits=32, state_format=None), DTYPES, DTYPES, st.permutations(KINDS), st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_32_bit_steps_are_the_models(
    options: dict[str, Any], dtype: torch.dtype, grad_dtype: torch.dtype, kinds: list[str], tensor_lr: bool
) -> None:
    """The same with float32 momentum, and with learning rates that are tensors."""
    assume(FREE_GRADIENTS or grad_dtype == dtype)
    run(options, dtype, grad_dtype, kinds, False, tensor_lr)


@pytest.mark.parametrize("wide", [False, True], ids=["blocks", "tensor"])
@pytest.mark.parametrize("name", ["e3m4", "e3m0", "e0m1"])
def test_propagated_infinities_spoil_their_block(name: str, wide: bool) -> None:
    """nonfinite="propagate": plain arithmetic; a block whose absmax is not finite is NaN from then on."""
    settings = PLAIN | {"optim_bits": 1 + int(name[1]) + int(name[3]), "state_format": name, "nonfinite": "propagate"}
    model = run(settings, torch.float32, torch.float32, ["normal", "broken"], wide)
    assert any(scale != scale for scale in model.scales)  # noqa: PLR0124
    assert model.skipped == 0
