"""Compiled kernels, executed: equal to the reference on the plans that people use."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import lionbits_reference as reference
import lionbits_triton as backend
from lionbits_conformance.strategies.common_plans import common_plans
from lionbits_reference.spec import Format, Plan
from lionbits_triton import execute

from .cases import HYPER, assert_steps_alike, mixed, scalars, slot

_F32, _BF16, _F16 = torch.float32, torch.bfloat16, torch.float16

#: One warp for a block and several, every width of codes, a loss of precision, one scale for a tensor.
SOME = [
    Plan(_F32, _F32, Format.of(8)),
    Plan(_BF16, _BF16, Format.of(4), param_rounding="dithered"),
    Plan(_F16, _F32, Format.of(8, block_size=2048)),
    Plan(_BF16, _BF16, Format.of(32), caution="mask"),
    Plan(_F32, _F32, Format.of(8, block_wise=False)),
]


def text(plan: Plan) -> str:
    return f"{plan.format.name}-{plan.format.block_size}-{plan.param_dtype}-{plan.param_rounding}-{plan.caution}"


@pytest.mark.parametrize("plan", SOME, ids=text)
def test_they_equal_the_reference(plan: Plan) -> None:
    assert_steps_alike(plan, partial(mixed, plan))


@pytest.mark.slow
@pytest.mark.parametrize("plan", common_plans(), ids=text)
def test_common_plans(plan: Plan) -> None:
    assert_steps_alike(plan, partial(mixed, plan))


@pytest.mark.slow
@pytest.mark.parametrize("plan", SOME[:3], ids=text)
@pytest.mark.parametrize("arch", ["100", "80", "120"])
def test_other_architectures(arch: str, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(execute.ENVIRONMENT, arch)
    assert_steps_alike(plan, partial(mixed, plan))


def test_counts_and_codec() -> None:
    plan = Plan(_F32, _F32, Format.of(4), caution="mask")
    slots, grads = map(list, zip(*mixed(plan), strict=True))
    counts = [
        tested.aligned(tested.prepare(plan, slots, grads), grads, HYPER, scalars(4)) for tested in (backend, reference)
    ]
    assert torch.equal(*counts)
    momentum = torch.randn(7, 130)
    states = [tested.encode(plan.format, momentum) for tested in (backend, reference)]
    for key in states[0]:
        assert torch.equal(states[0][key], states[1][key])
    decoded = [tested.decode(plan.format, states[0], momentum.shape) for tested in (backend, reference)]
    assert torch.equal(*decoded)


def test_the_architecture_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Module:
        def __init__(self, ptx: str) -> None:
            seen.append(ptx.split(".target")[1].split(maxsplit=1)[0])
            raise InterruptedError

    monkeypatch.setattr(execute, "module", Module)
    one, grad = slot(SOME[0], (2, 256))
    for arch in ("80", "90"):
        monkeypatch.setenv(execute.ENVIRONMENT, arch)
        with pytest.raises(InterruptedError):
            backend.step(backend.prepare(SOME[0], [one], [grad]), [grad], HYPER, scalars(1))
    assert seen == ["sm_80", "sm_90a"]


def test_what_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.supports(SOME[0], torch.device("cpu")) == ""
    assert "LIONBITS_TRITON_EMULATE=90 is set" in backend.supports(SOME[0], torch.device("cuda"))
    monkeypatch.setenv(execute.ENVIRONMENT, "75")
    with pytest.raises(ValueError, match="LIONBITS_TRITON_EMULATE=75: must be one of 80, 90, 100, 120"):
        backend.supports(SOME[0], torch.device("cpu"))
    monkeypatch.delenv(execute.ENVIRONMENT)
    assert "set TRITON_INTERPRET=1" in backend.supports(SOME[0], torch.device("cpu"))
