"""Bytes of a step: the floors of the design, and the sizes of what really lies in memory."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lionbits import Lion
from lionbits_bench import candidates, peers, traffic, workloads
from lionbits_reference.spec import Format, Plan

SHAPE = (64, 1024)
PLANS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def per_element(dtype: str, bits: int, **settings: Any) -> float:
    plan = Plan(PLANS[dtype], PLANS[dtype], Format.of(bits), **settings)
    return traffic.plan_bytes(plan, SHAPE) / math.prod(SHAPE)


@pytest.mark.parametrize(
    ("dtype", "bits", "expected"),
    [("bf16", 32, 14.0), ("bf16", 8, 8.03125), ("bf16", 4, 7.0625), ("fp32", 32, 20.0), ("fp32", 8, 14.03125)],
)
def test_floors(dtype: str, bits: int, expected: float) -> None:
    assert per_element(dtype, bits) == expected


def test_what_a_variant_adds() -> None:
    plain = per_element("bf16", 8)
    assert per_element("bf16", 8, param_rounding="dithered") == plain
    assert per_element("bf16", 8, param_rounding="compensated") == plain + 4
    assert per_element("bf16", 8, caution="gradient") == plain
    assert per_element("bf16", 8, caution="mask") == plain + 2 + 1 + 4 / 256


def test_rows_that_are_no_whole_blocks_are_counted_as_they_lie() -> None:
    plan = Plan(torch.bfloat16, torch.bfloat16, Format.of(4))
    assert traffic.plan_bytes(plan, (5, 131)) == 5 * (131 * 6 + 2 * (66 + 2 * 4))


def made(build: candidates.Build, dtype: str) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    tensors = workloads.tensors(workloads.gpt2(layers=1, width=64, vocabulary=80, context=16), PLANS[dtype], CPU)
    optimizer = build(tensors)
    optimizer.step()
    return optimizer, tensors


CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", PLANS)
def test_the_floor_of_a_variant_is_what_its_tensors_hold(dtype: str) -> None:
    for candidate in candidates.lions(["reference"], dtype):
        optimizer, tensors = made(candidate.build, dtype)
        assert isinstance(optimizer, Lion)
        size = PLANS[dtype].itemsize
        kept = [(key, value) for p in tensors for key, value in optimizer.state[p].items()]
        state = sum(value.nbytes for key, value in kept if key.startswith(("exp_avg", "param_residual")))
        elements = sum(p.numel() for p in tensors)
        again = elements * size + state if "mask" in candidate.variant else 0
        assert traffic.floor_bytes(optimizer) == 3 * size * elements + 2 * state + again


def adams(dtype: str) -> list[candidates.Candidate]:
    return [candidate for candidate in peers.peers(dtype, CPU, ["torch"]) if "AdamW" in candidate.variant]


@pytest.mark.parametrize("dtype", PLANS)
def test_a_peers_floor_is_what_its_tensors_hold(dtype: str) -> None:
    for candidate in adams(dtype):
        optimizer, tensors = made(candidate.build, dtype)
        elements, size = sum(p.numel() for p in tensors), PLANS[dtype].itemsize
        counters = 4 * len(tensors)
        assert traffic.floor_bytes(optimizer) == 3 * size * elements + 2 * (2 * size * elements + counters)


@pytest.mark.parametrize("dtype", PLANS)
def test_what_decides_what_fits_is_what_is_held(dtype: str) -> None:
    for candidate in (*candidates.lions(["reference"], dtype), *peers.peers(dtype, CPU)):
        tensors = workloads.tensors(workloads.one_tensor(16), PLANS[dtype], CPU)
        optimizer = candidate.build(tensors)
        optimizer.step()
        held = traffic.held_bytes(optimizer) / (1 << 16)
        # step counts, a few bytes per tensor, are not in the figure
        assert held == pytest.approx(candidate.bytes_per_element, rel=0.01)


class DeepSpeedCPULion(torch.optim.Adam):
    """As that one, it holds what a step of Lion has no use for."""


def test_state_that_lies_idle_is_held_and_not_moved() -> None:
    (parameter,) = workloads.tensors(workloads.one_tensor(10), torch.float32, CPU)
    moved = []
    for kind in (torch.optim.Adam, DeepSpeedCPULion):
        optimizer = kind([parameter])
        optimizer.step()
        assert traffic.held_bytes(optimizer) == 4 * parameter.nbytes + 4
        moved.append(traffic.floor_bytes(optimizer))
    assert moved[0] - moved[1] == 2 * parameter.nbytes


def test_a_tensor_made_of_tensors_has_their_size() -> None:
    inner = {"codes": torch.zeros(100, dtype=torch.uint8), "scales": torch.zeros(10)}

    class Quantised(torch.nn.Parameter):
        def __tensor_flatten__(self) -> tuple[list[str], None]:
            return list(inner), None

        codes, scales = inner.values()

    parameter = torch.nn.Parameter(torch.zeros(100))
    optimizer = torch.optim.SGD([parameter])
    optimizer.state[parameter]["exp_avg"] = Quantised(torch.zeros(100))
    assert traffic.state_bytes(optimizer, parameter) == 100 + 40
