"""Cases that random runs rarely reach: other classes, long histories, long tensors, cuts inside a tensor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import lionbits
from lionbits_conformance.oracle.differential import StepInput, replay
from lionbits_reference import slices

BACKEND = {"backend": "reference"}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(shape: tuple[int, ...], steps: int) -> list[StepInput]:
    return [StepInput([normal(step, *shape)]) for step in range(steps)]


@pytest.mark.parametrize("variant", ["Lion32bit", "Lion8bit", "Lion4bit", "PagedLion8bit", "PagedLion4bit"])
def test_variants_are_lion_with_their_bits(variant: str) -> None:
    kwargs = {"lr": 0.01, "weight_decay": 0.1, "min_8bit_size": 1, **BACKEND}
    assert replay(getattr(lionbits, variant), kwargs, [normal(9, 3, 70)], plain((3, 70), 4)) is None


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"use_4bit": True, "quant_threshold": 200},
        {"use_4bit": True, "quant_threshold": 210},
        {"use_4bit": True, "cautious": True, "quant_threshold": 0, "state_format": "e0m3", "block_wise": False},
        {"momentum_first": True, "betas": (0.95, 0.98), "grad_clip": 0.0},
    ],
)
def test_qlion_is_lion_with_its_arguments(own: dict[str, Any]) -> None:
    assert replay(lionbits.QLion, {"lr": 0.01, **own, **BACKEND}, [normal(9, 3, 70)], plain((3, 70), 4)) is None


@pytest.mark.parametrize("kind", [dict, SimpleNamespace])
def test_args_override_four_arguments(kind: Any) -> None:
    args = kind(optim_bits=8, min_8bit_size=1, percentile_clipping=5, block_wise=False)
    kwargs = {"lr": 0.01, "optim_bits": 32, "args": args, **BACKEND}
    assert replay(lionbits.Lion, kwargs, [normal(9, 2, 64)], plain((2, 64), 4)) is None


def test_groups_with_their_own_bits_do_not_inherit_a_format() -> None:
    kwargs = {"lr": 0.01, "optim_bits": 8, "state_format": "e0m7", "block_size": 32, "min_8bit_size": 1, **BACKEND}
    groups = [{}, {"optim_bits": 4}, {"optim_bits": 4, "block_size": 64}]
    params = [normal(j, 2, 65) for j in range(3)]
    inputs = [StepInput([normal(step + j, 2, 65) for j in range(3)]) for step in range(3)]
    assert replay(lionbits.Lion, kwargs, params, inputs, groups) is None


@pytest.mark.parametrize("q", [1, 5, 95])
def test_a_history_turns_over(q: int) -> None:
    """230 norms, the first of them zeros, through a window of 100."""
    inputs = [StepInput([normal(step, 3) * (step > 1) * 2.0 ** (step % 7)]) for step in range(230)]
    kwargs = {"lr": 0.01, "percentile_clipping": q, "grad_clip": 40.0, **BACKEND}
    assert replay(lionbits.Lion, kwargs, [normal(9, 3)], inputs) is None


def test_norms_of_long_tensors_add_up_in_their_order() -> None:
    """More than one run of 65,536, the last short."""
    kwargs = {"lr": 0.01, "grad_clip": 1.0, **BACKEND}
    assert replay(lionbits.Lion, kwargs, [normal(9, 1, 70001)], [StepInput([normal(1, 1, 70001)])]) is None


@pytest.mark.parametrize("shape", [(3, 37), (7, 300), (1, 1100), (4, 4, 64)])
@pytest.mark.parametrize("bits", [32, 8, 4])
def test_no_bit_depends_on_where_tensors_are_cut(
    bits: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference walks over long tensors in slices; here they are short ones."""
    monkeypatch.setattr(slices.cut, "__defaults__", (256,))
    own: dict[str, Any] = {"param_rounding": "compensated", "master_bits": 24, "cautious": "mask", "weight_decay": 0.1}
    kwargs = {"lr": 0.01, "optim_bits": bits, "min_8bit_size": 1, **own, **BACKEND}
    assert replay(lionbits.Lion, kwargs, [normal(9, *shape).bfloat16()], plain(shape, 2)) is None
    kwargs["block_wise"] = False
    assert replay(lionbits.Lion, kwargs, [normal(9, *shape).bfloat16()], plain(shape, 2)) is None


def test_what_differs_is_named() -> None:
    """A check that finds nothing may be asleep: an optimizer with another seed differs in its codes."""

    class Other(lionbits.Lion):
        def __init__(self, params: Any, **kwargs: Any) -> None:
            super().__init__(params, **{**kwargs, "seed": 1})

    kwargs = {"lr": 0.01, "optim_bits": 8, "min_8bit_size": 1, **BACKEND}
    found = replay(Other, kwargs, [normal(9, 2, 64)], plain((2, 64), 4))
    assert found is not None
    assert (found.step, found.parameter, found.field) == (0, 0, "exp_avg_codes")
    assert found.oracle != found.optimizer
    assert "by the oracle" in str(found)
