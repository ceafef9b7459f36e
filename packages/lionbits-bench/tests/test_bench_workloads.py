"""The lists are those of the models, to the last parameter."""

import math

import pytest
import torch

from lionbits_bench import workloads
from lionbits_bench.workloads import Workload


@pytest.mark.parametrize(
    ("workload", "tensors", "elements"),
    [
        (workloads.llama(), 291, 6_738_415_616),
        (workloads.resnet50(), 161, 25_557_032),
        (workloads.resnet50(channels_last=True), 161, 25_557_032),
        (workloads.vit(), 152, 86_567_656),
        (workloads.gpt2(), 148, 124_439_808),
        (workloads.uniform(10_000, (100,)), 10_000, 1_000_000),
        (workloads.one_tensor(30), 1, 1 << 30),
        (workloads.one_tensor(13), 1, 1 << 13),
    ],
    ids=lambda value: value.name if isinstance(value, Workload) else None,
)
def test_sizes_are_the_published_ones(workload: Workload, tensors: int, elements: int) -> None:
    assert len(workload.shapes) == tensors
    assert workload.elements == elements


def test_a_family_takes_the_largest_that_fits_and_says_what_is_missing() -> None:
    family = workloads.falling(workloads.llama, 32)
    whole, short = family[0], family[3]
    assert workloads.fitting(family, whole.elements * 8, 8.0) is whole
    assert whole.remark == ""
    assert workloads.fitting(family, short.elements * 8, 8.0) is short
    assert short.remark == "the first 29 of 32 layers"
    assert workloads.fitting(family, short.elements * 8 - 1, 8.0) is family[4]
    assert workloads.fitting(family, 0, 8.0) is family[-1]


def test_one_tensor_is_halved_and_keeps_its_name() -> None:
    family = workloads.one_tensor_family(30)
    assert [w.elements for w in family] == [1 << k for k in range(30, 9, -1)]
    assert {w.name for w in family} == {"one tensor, 2^30"}
    assert [w.remark for w in family[:2]] == ["", "2^29 elements"]


@pytest.mark.parametrize("channels_last", [False, True])
def test_tensors_are_random_have_gradients_and_lie_as_asked(channels_last: bool) -> None:
    workload = workloads.resnet50(stem=4, blocks=(1, 1), classes=10, channels_last=channels_last)
    tensors = workloads.tensors(workload, torch.bfloat16, torch.device("cpu"))
    assert [tuple(p.shape) for p in tensors] == list(workload.shapes)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    kernel = next(p for p in tensors if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    for p in (kernel, kernel.grad):
        assert p is not None
        assert p.is_contiguous(memory_format=layout)
        assert p.is_contiguous() is not channels_last
    for p in tensors:
        assert p.grad is not None
        for values in (p.detach(), p.grad):
            assert values.dtype == torch.bfloat16
            assert values.unique().numel() > math.sqrt(values.numel()) / 2
