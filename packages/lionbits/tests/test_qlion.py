"""QLion's face: its arguments, its repr, its quantizer, and what it does, against the original's formulas."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from lionbits import Lion, QLion, SymmetricQuantizer

from .family import assert_same, gradient, snapshot, train, weights


def test_signature_is_the_originals() -> None:
    """QLion's eight arguments stand first, in its order and with its defaults."""
    found = list(inspect.signature(QLion).parameters.items())[:8]
    assert [(name, p.default) for name, p in found[1:]] == [
        ("lr", 1e-4),
        ("betas", (0.9, 0.99)),
        ("weight_decay", 0.0),
        ("use_4bit", False),
        ("cautious", False),
        ("quant_threshold", 1024),
        ("grad_clip", 1.0),
    ]
    group = QLion(weights(), 0.5, (0.5, 0.75), 0.25, True, True, 16, 2.0).param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.5, 0.75), 0.25)
    assert (group["use_4bit"], group["quant_threshold"], group["grad_clip"]) == (True, 16, 2.0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "QLion(lr=0.0001, quant=False)"),
        ({"use_4bit": True}, "QLion(lr=0.0001, quant=True)"),
        ({"lr": 0.02}, "QLion(lr=0.02, quant=False)"),
    ],
)
def test_repr_is_the_originals(settings: dict[str, Any], text: str) -> None:
    """``repr`` is the one line of the original, also for a copy."""
    optimizer = QLion(weights(), **settings)
    assert repr(optimizer) == text
    assert repr(copy.deepcopy(optimizer)) == text


def test_only_more_elements_than_the_threshold_are_quantised() -> None:
    """quant_threshold is strict: 1,024 elements keep float32, 1,025 do not; 0 quantises all that has rows to scale."""
    at, above = weights(shapes=[(32, 32), (25, 41)])
    optimizer = QLion([at, above], use_4bit=True)
    train(optimizer, [at, above], [1])
    assert (at.numel(), above.numel()) == (1024, 1025)
    assert "exp_avg" in optimizer.state[at]
    assert "exp_avg_codes" in optimizer.state[above]
    (small,) = weights(shapes=[(1, 32)])
    optimizer = QLion([small], use_4bit=True, quant_threshold=0)
    train(optimizer, [small], [1])
    assert "exp_avg_codes" in optimizer.state[small]


def test_four_bits_are_packed() -> None:
    """Two elements share a byte, unlike in the original: 4.25 bits per element with the scales."""
    (param,) = weights(shapes=[(64, 128)])
    optimizer = QLion([param], use_4bit=True)
    train(optimizer, [param], [1])
    held = [value for key, value in optimizer.state[param].items() if key != "step"]
    assert sum(value.numel() * value.element_size() for value in held) == 64 * 128 // 2 + 64 * 4


TRANSLATED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"use_4bit": True}, {"optim_bits": 4}),
    ({"use_4bit": True, "quant_threshold": 4200}, {"optim_bits": 4, "min_8bit_size": 4201}),
    ({"cautious": True}, {"cautious": "gradient"}),
    (
        {"use_4bit": True, "cautious": True, "weight_decay": 0.1},
        {"optim_bits": 4, "cautious": "gradient", "weight_decay": 0.1},
    ),
    ({"grad_clip": 0.0}, {"grad_clip": 0.0}),
    ({"momentum_first": True}, {"betas": (0.9 * 0.99, 0.99)}),
    (
        {"momentum_first": True, "betas": (0.5, 0.75), "use_4bit": True, "cautious": True},
        {"betas": (0.375, 0.75), "optim_bits": 4, "cautious": "gradient"},
    ),
    ({"maximize": True, "param_rounding": "stochastic"}, {"maximize": True, "param_rounding": "stochastic"}),
]  # fmt: skip


@pytest.mark.parametrize("scope", ["optimizer", "group", "later group", "override"])
@pytest.mark.parametrize(("own", "lions"), TRANSLATED)
def test_qlion_is_lion_with_its_settings_translated(scope: str, own: dict[str, Any], lions: dict[str, Any]) -> None:
    """Every setting acts as Lion's that it stands for, set for the optimizer, for a group, later, or by name."""
    params, twins = weights(torch.bfloat16), weights(torch.bfloat16)
    named = list(zip("abcd", params, strict=True))
    if scope == "optimizer":
        optimizer = QLion(params, lr=0.01, **own)
    elif scope == "group":
        optimizer = QLion([{"params": params, **own}], lr=0.01)
    elif scope == "later group":
        optimizer = QLion(params[:1], lr=0.01, **own)
        optimizer.add_param_group({"params": params[1:], **own})
    else:
        optimizer = QLion(named, lr=0.01, overrides={"*": own})
    base = {"lr": 0.01, "grad_clip": 1.0, "min_8bit_size": 1025}
    lion = Lion(twins, **{**base, **lions})
    train(optimizer, params, [1, 2, 3])
    train(lion, twins, [1, 2, 3])
    assert_same(snapshot(optimizer)["params"], snapshot(lion)["params"])
    assert_same(snapshot(optimizer)["state"], snapshot(lion)["state"])


def test_translated_groups_are_not_translated_twice() -> None:
    """A group that one QLion shows means the same to another, in which betas of momentum_first stay as they are."""
    first = QLion(weights(), use_4bit=True, cautious=True, momentum_first=True)
    second = QLion(first.param_groups)
    second.add_param_group({**second.param_groups[0], "params": weights()})
    assert_same(snapshot(second)["groups"], [*snapshot(first)["groups"]] * 2)
    assert second.param_groups[1]["betas"] == (0.9 * 0.99, 0.99)


def test_groups_differ() -> None:
    """use_4bit, cautious, quant_threshold and grad_clip hold for their group alone."""
    shapes = [(64, 64)] * 3
    params = weights(shapes=shapes)
    optimizer = QLion(
        [
            {"params": params[:1], "use_4bit": True, "grad_clip": 0.0},
            {"params": params[1:2], "use_4bit": True, "quant_threshold": 4096, "cautious": True},
            {"params": params[2:]},
        ]
    )
    train(optimizer, params, [1])
    assert ["exp_avg_codes" in optimizer.state[param] for param in params] == [True, False, False]
    # The gradients have a norm of about 64: where it is clipped to 1, the momentum is (1 - b2) long.
    norms = [optimizer.momentum(param).norm().item() for param in params]
    assert norms[0] > 0.5
    assert all(0.0099 < norm < 0.0101 for norm in norms[1:])


def test_momentum_first_is_the_originals_rule() -> None:
    """m = b2*m + (1-b2)*g, then u = sign(b1*m + (1-b1)*g) from the new m: the original's lines, here in float64."""
    (param,) = weights(shapes=[(64, 64)])
    b1, b2, lr = 0.9, 0.99, 2.0**-10
    optimizer = QLion([param], lr=lr, momentum_first=True, grad_clip=0.0)
    p, m = param.detach().double(), torch.zeros(64, 64, dtype=torch.float64)
    flips = 0
    for step in range(1, 40):
        g = gradient(param, 0, step).double()
        classic = torch.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g
        u = torch.sign(b1 * m + (1 - b1) * g)
        flips += int((classic != u).sum())
        # lr is a power of two and |p| < 8, so that float32 and float64 hold the same sums but for p's last bits.
        p = (p - lr * u).float().double()
        train(optimizer, [param], [step])
        assert torch.equal(param.detach().double(), p)
    assert flips > 100  # the two orders do differ


def test_linear_codes_are_the_originals() -> None:
    """With its format, one scale and nearest rounding, QLion's 4-bit codes are SymmetricQuantizer's."""
    (param,) = weights(shapes=[(64, 64)])
    optimizer = QLion([param], use_4bit=True, state_format="e0m3", block_wise=False, rounding="nearest")
    train(optimizer, [param], [1])
    exact = QLion([twin := weights(shapes=[(64, 64)])[0]])
    train(exact, [twin], [1])
    codes, scale = SymmetricQuantizer().quantize(exact.momentum(twin))
    ratio = optimizer.momentum(param) / scale
    assert torch.equal(ratio.round().to(torch.int8), codes)
    assert len(codes.unique()) == 15


# ---- the quantizer ---------------------------------------------------------------------------------------------------


def original(tensor: Tensor, bits: int = 4, min_scale: float = 1e-8) -> tuple[Tensor, float]:
    """The original's quantize: zeros below 1e-8, else max/7 as the scale, rounded to nearest even and clamped."""
    top = 2 ** (bits - 1) - 1
    largest = tensor.abs().max()
    if largest < 1e-8:
        return torch.zeros_like(tensor, dtype=torch.int8), 0.0
    scale = torch.clamp(largest / top, min=min_scale)
    return torch.clamp(torch.round(tensor / scale), -top, top).to(torch.int8), float(scale)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("magnitude", [1e-5, 1e-3, 1.0, 3e4])
def test_quantizer_is_the_originals(bits: int, magnitude: float) -> None:
    """Codes as the original's, an int8 tensor of the same shape and a float; both ends of the range are reached."""
    tensor = gradient(torch.empty(33, 70), 0, bits) * magnitude
    tensor[0, 0], tensor[1, 1] = tensor.abs().max(), -tensor.abs().max()
    codes, scale = SymmetricQuantizer(bits=bits).quantize(tensor)
    expected, its_scale = original(tensor, bits)
    assert_same(codes, expected)
    assert type(scale) is float
    assert torch.tensor(scale) == torch.tensor(its_scale)
    assert (codes.min(), codes.max()) == (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
    assert_same(SymmetricQuantizer(bits=bits).dequantize(codes, scale), codes.to(torch.float32) * scale)


@pytest.mark.parametrize("tensor", [torch.zeros(3, 4), torch.full((5,), 9e-9), torch.zeros(()), torch.zeros(0, 3)])
def test_quantizer_of_nothing_is_zeros_and_zero(tensor: Tensor) -> None:
    """Zeros, values below 1e-8 and empty tensors become zero codes with scale 0.0, which come back as zeros."""
    codes, scale = SymmetricQuantizer().quantize(tensor)
    assert_same(codes, torch.zeros(tensor.shape, dtype=torch.int8))
    assert type(scale) is float
    assert scale == 0.0
    assert_same(SymmetricQuantizer().dequantize(codes, scale), torch.zeros(tensor.shape))


def test_quantizer_has_a_smallest_scale() -> None:
    """min_scale keeps the codes of small tensors small."""
    codes, scale = SymmetricQuantizer(bits=4, min_scale=0.5).quantize(torch.tensor([0.2, -0.3, 1.2]))
    assert scale == 0.5
    assert codes.tolist() == [0, -1, 2]


def test_quantizer_rounds_ties_to_even() -> None:
    """Halves go to the even code, as torch.round has it."""
    codes, scale = SymmetricQuantizer().quantize(torch.tensor([7.0, 0.5, 1.5, 2.5, -0.5, -1.5, -7.0]))
    assert scale == 1.0
    assert codes.tolist() == [7, 0, 2, 2, 0, -2, -7]


def test_quantizer_leaves_its_input_alone() -> None:
    """Parameters, strided views and other dtypes can be quantised; nothing is written to them."""
    base = gradient(torch.empty(8, 12), 0, 1)
    for tensor in (base.t(), base[:, ::2], torch.nn.Parameter(base.clone()), base.bfloat16(), base.double()):
        before = tensor.detach().clone()
        codes, _ = SymmetricQuantizer(8).quantize(tensor)
        assert codes.shape == tensor.shape
        assert not codes.requires_grad
        assert_same(tensor.detach(), before)
