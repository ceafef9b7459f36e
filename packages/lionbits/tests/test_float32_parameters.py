"""What bfloat16 parameters are short of is never lost: exact float32 weights, and checkpoints into float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion, Lion8bit, convert, float32_parameters

from .family import Variant, assert_same, gradient, snapshot
from .test_contract_state import through_file

SETTINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}


class Net(nn.Module):
    """Parameters of many shapes, two names of one, a frozen one of integers, and a buffer."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        # values that bfloat16 has, so that both dtypes begin alike
        self.matrix = nn.Parameter(torch.randn(64, 64, generator=generator).bfloat16().to(dtype))
        self.odd = nn.Parameter(torch.randn(70, 61, generator=generator).bfloat16().to(dtype).t())
        self.scalar = nn.Parameter(torch.tensor(0.5, dtype=dtype))
        self.nothing = nn.Parameter(torch.zeros(0, 8, dtype=dtype))
        self.tied = self.matrix
        self.packed = nn.Parameter(torch.arange(5, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("count", torch.tensor(3))


def run(model: nn.Module, optimizer: Lion, steps: list[int]) -> None:
    """Steps whose gradients are the same bits in bfloat16 and in float32."""
    for step in steps:
        for position, param in enumerate(model.parameters()):
            if param.requires_grad:
                param.grad = gradient(param, position, step).bfloat16().to(param.dtype)
        optimizer.step()


def trained(variant: Callable[..., Lion], dtype: torch.dtype, steps: list[int], **more: Any) -> tuple[Net, Lion]:
    model = Net(dtype)
    optimizer = variant(model.parameters(), **SETTINGS, **more)
    run(model, optimizer, steps)
    return model, optimizer


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: param.detach() for name, param in model.named_parameters(remove_duplicate=False)}


def test_weights_are_those_of_a_float32_run(variant: Variant) -> None:
    """Bit for bit, by name, of the same strides as shown; and nothing is changed by asking."""
    model, optimizer = trained(variant, torch.bfloat16, [1, 2, 3], param_rounding="compensated")
    reference, _ = trained(variant, torch.float32, [1, 2, 3])
    before, shown = snapshot(optimizer), copy.deepcopy(values(model))
    found = float32_parameters(model, optimizer)
    assert_same(found, values(reference))
    assert found["tied"] is found["matrix"]
    for tensor in found.values():
        tensor.fill_(7)
    assert_same(snapshot(optimizer), before)
    assert_same(values(model), shown)


def test_a_float32_model_is_made_of_them(variant: Variant) -> None:
    model, optimizer = trained(variant, torch.bfloat16, [1, 2], param_rounding="compensated")
    reference, _ = trained(variant, torch.float32, [1, 2])
    exact = Net(torch.float32)
    exact.load_state_dict({**model.state_dict(), **float32_parameters(model, optimizer)})
    assert_same(dict(exact.state_dict()), dict(reference.state_dict()))


def test_24_bits_are_the_upper_ones(variant: Variant) -> None:
    """What they show, and the next eight bits."""
    model, optimizer = trained(variant, torch.bfloat16, [1, 2], param_rounding="compensated", master_bits=24)
    found = float32_parameters(model, optimizer)
    for name, tensor in found.items():
        if tensor.dtype == torch.float32:
            assert not (tensor.contiguous().view(torch.int32) & 0xFF).any()
            upper = (tensor.view(torch.int32) + 0x8000) & ~0xFFFF  # the nearest, ties away from zero
            assert_same(upper.view(torch.float32), values(model)[name].float())
    assert any((tensor.float() != tensor.bfloat16()).any() for tensor in found.values())


def test_without_compensation_weights_are_what_they_show(variant: Variant) -> None:
    """Before the first step, of other dtypes, and of parameters that the optimizer does not hold."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        model = Net(dtype)
        optimizer = variant([model.matrix], **SETTINGS)
        for _ in range(2):
            for name, tensor in float32_parameters(model, optimizer).items():
                expected = values(model)[name]
                assert_same(tensor, expected if name == "packed" else expected.float())
            run(model, optimizer, [1])


def in_float32(variant: Variant, model: nn.Module, optimizer: Lion) -> tuple[nn.Module, Lion]:
    """Save both, and load them over float32 parameters: weights first."""
    saved = through_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    target = Net(torch.float32)
    target.load_state_dict(saved["model"])
    resumed = variant(target.parameters())
    resumed.load_state_dict(saved["optimizer"])
    return target, resumed


@pytest.mark.parametrize("master_bits", [32, 24])
def test_a_compensated_checkpoint_loads_into_float32(variant: Variant, master_bits: int) -> None:
    """Weights first, then the optimizer: the rest makes them exact, and a float32 run goes on."""
    model, optimizer = trained(
        variant, torch.bfloat16, [1, 2, 3], param_rounding="compensated", master_bits=master_bits
    )
    target, resumed = in_float32(variant, model, optimizer)
    assert_same(values(target), float32_parameters(model, optimizer))
    assert_same(float32_parameters(target, resumed), float32_parameters(model, optimizer))
    if master_bits == 32:
        reference, other = trained(variant, torch.float32, [1, 2, 3])
        run(reference, other, [4, 5])
        run(target, resumed, [4, 5])
        assert_same(values(target), values(reference))


def test_weights_that_are_exact_already_stay(variant: Variant) -> None:
    """Where ``float32_parameters`` was saved as the model, nothing is added a second time."""
    model, optimizer = trained(variant, torch.bfloat16, [1, 2], param_rounding="compensated")
    exact = float32_parameters(model, optimizer)
    target = Net(torch.float32)
    target.load_state_dict({**model.state_dict(), **exact})
    resumed = variant(target.parameters())
    resumed.load_state_dict(optimizer.state_dict())
    assert_same(values(target), exact)


def test_weights_of_another_checkpoint_are_refused(variant: Variant) -> None:
    """The model has to be loaded first; after the refusal nothing has changed, and then it works."""
    model, optimizer = trained(variant, torch.bfloat16, [1, 2], param_rounding="compensated")
    target = Net(torch.float32)
    with torch.no_grad():
        target.matrix.mul_(1.0001)
    resumed = variant(target.parameters())
    before, shown = snapshot(resumed), copy.deepcopy(values(target))
    with pytest.raises(ValueError, match=r"shape \(64, 64\) is not what param_residual.*Load the model's weights"):
        resumed.load_state_dict(optimizer.state_dict())
    assert_same(snapshot(resumed), before)
    assert_same(values(target), shown)
    target.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    assert_same(values(target), float32_parameters(model, optimizer))


def test_its_own_checkpoint_after_float_loads(variant: Variant) -> None:
    """A compensated run whose model was made float32, before a step and after one."""
    model, optimizer = trained(variant, torch.bfloat16, [1, 2], param_rounding="compensated")
    exact = float32_parameters(model, optimizer)
    model.float()
    assert_same(float32_parameters(model, optimizer), exact)
    for steps in ([], [3]):
        run(model, optimizer, steps)
        target, _ = in_float32(variant, model, optimizer)
        assert_same(values(target), float32_parameters(model, optimizer))


def test_its_own_checkpoint_after_another_rounding_loads(variant: Variant) -> None:
    """``param_rounding`` was set to another between two steps; the rest is still there until the next."""
    model, optimizer = trained(variant, torch.bfloat16, [1, 2], param_rounding="compensated")
    optimizer.param_groups[0]["param_rounding"] = "stochastic"
    assert_same(float32_parameters(model, optimizer)["matrix"], model.matrix.detach().float())
    twins = copy.deepcopy(model)
    resumed = variant(twins.parameters())
    resumed.load_state_dict(through_file(optimizer.state_dict()))
    for one, some in ((model, optimizer), (twins, resumed)):
        run(one, some, [3])
    assert_same(values(twins), values(model))
    assert_same(resumed.state_dict(), optimizer.state_dict())


def test_conversion_keeps_the_rest() -> None:
    """32 bits of momentum, compensated, become 8 over float32 parameters: conversion first, then the rest."""
    model, optimizer = trained(Lion, torch.bfloat16, [1, 2], param_rounding="compensated")
    target = Net(torch.float32)
    target.load_state_dict(model.state_dict())
    narrow = Lion8bit(target.parameters())
    narrow.load_state_dict(convert(optimizer.state_dict(), narrow))
    assert_same(values(target), float32_parameters(model, optimizer))


#: (how a rest was spoilt, words of the message)
SPOILT: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "another shape": (lambda rest: rest[:3], "param_residual should be"),
    "floats": (lambda rest: rest.float(), "param_residual should be"),
    "no tensor": (lambda rest: 3, "param_residual"),
    "meta": (lambda rest: rest.to("meta"), "param_residual of layout"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SPOILT)
def test_a_rest_of_another_form_is_refused(dtype: torch.dtype, name: str) -> None:
    spoil, words = SPOILT[name]
    model, optimizer = trained(Lion, torch.bfloat16, [1], param_rounding="compensated")
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["param_residual"] = spoil(saved["state"][0]["param_residual"])
    target = Net(dtype)
    target.load_state_dict(model.state_dict())
    resumed = Lion(target.parameters())
    before = snapshot(resumed)
    with pytest.raises(ValueError, match=f"parameter 0.*{words}"):
        resumed.load_state_dict(saved)
    assert_same(snapshot(resumed), before)


def test_what_is_no_model_or_no_optimizer_of_it_is_refused() -> None:
    model, optimizer = trained(Lion, torch.bfloat16, [1])
    for args, kind, words in (
        ((optimizer, model), TypeError, "model=<Lion> is not accepted"),
        ((model, torch.optim.SGD(model.parameters())), TypeError, "optimizer=<SGD> is not accepted"),
        ((nn.Linear(2, 2), optimizer), ValueError, "model=Linear has no parameter that the optimizer holds"),
    ):
        with pytest.raises(kind, match=words):
            float32_parameters(*args)  # type: ignore[arg-type]
