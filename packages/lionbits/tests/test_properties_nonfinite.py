"""Properties of the non-finite: a NaN or infinity harms nobody but its own element, and is counted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lionbits import Lion

pytestmark = pytest.mark.filterwarnings("ignore:optim_bits=2:UserWarning")

EVERY_WIDTH = pytest.mark.parametrize("bits", [32, 8, 4, 2])
SHAPE = (3, 70)
BAD = [math.nan, math.inf, -math.inf]
OPTIONS: list[dict[str, Any]] = [{}, {"cautious": "mask"}, {"cautious": "gradient", "rounding": "stochastic"}]
OPTIONS += [{"grad_clip": 1.0}, {"percentile_clipping": 5}]


def start() -> torch.Tensor:
    """Where every run begins."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def gradients(count: int) -> list[torch.Tensor]:
    """Gradients with the largest of each block of 32 at its first element, so that the others may be taken away."""
    generator = torch.Generator().manual_seed(2)
    drawn = [torch.randn(SHAPE, generator=generator).clamp(-3, 3) for _ in range(count)]
    for grad in drawn:
        grad[:, ::32] = 8.0
    return drawn


def lion(param: torch.Tensor, bits: int, **options: Any) -> Lion:
    """A Lion of these bits in blocks of 32, lr 0.01."""
    return Lion([param], **{"lr": 0.01, "optim_bits": bits, "min_8bit_size": 1, "block_size": 32} | options)


def state_of(optimizer: Lion, param: torch.Tensor) -> list[torch.Tensor]:
    """The state's tensors but the count."""
    return [value for key, value in optimizer.state[param].items() if key != "step"]


@EVERY_WIDTH
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "mask", "gradient", "grad_clip", "percentile"])
def test_a_bad_gradient_is_as_no_gradient(bits: int, bad: float, options: dict[str, Any]) -> None:
    """Beside the skip count, 20 steps with a NaN or infinity equal those with a zero in its place: all bits of it."""
    place = (1, 40)
    runs = []
    for value in (0.0, bad):
        param = torch.nn.Parameter(start())
        optimizer = lion(param, bits, **options)
        for grad in gradients(20):
            param.grad = grad.clone()
            param.grad[place] = value
            optimizer.step()
        runs.append((param.detach(), state_of(optimizer, param), optimizer.skipped_elements()))
    (without, state_without, none), (with_bad, state_with, skipped) = runs
    assert (none, skipped) == (0, 20)
    assert torch.equal(without, with_bad)
    assert with_bad[place] == start()[place]
    assert all(torch.equal(a, b) for a, b in zip(state_without, state_with, strict=True))


@EVERY_WIDTH
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_gradient_now_and_then_leaves_the_others_alone(bits: int, bad: float) -> None:
    """An element that is bad every third step keeps p and m in those; the others of its block are as without it."""
    place, mine = (1, 40), torch.zeros(SHAPE, dtype=torch.bool)
    mine[place] = True
    ends, momenta = [], []
    for hurt in (False, True):
        param = torch.nn.Parameter(start())
        optimizer = lion(param, bits, weight_decay=0.1)
        for step, grad in enumerate(gradients(30)):
            param.grad = grad.clone()
            before, m_before = param.detach().clone(), optimizer.momentum(param)
            if hurt and step % 3 == 2:
                param.grad[place] = bad
            optimizer.step()
            if hurt and step % 3 == 2:
                assert param[place] == before[place]
                if bits == 32:
                    assert optimizer.momentum(param)[place] == m_before[place]
        ends.append(param.detach())
        momenta.append(optimizer.momentum(param))
        assert optimizer.skipped_elements() == (10 if hurt else 0)
    assert torch.equal(ends[0][~mine], ends[1][~mine])
    assert torch.equal(momenta[0][~mine], momenta[1][~mine])
    assert not torch.equal(ends[0][mine], ends[1][mine])


@EVERY_WIDTH
def test_raise_names_the_count_after_updating_the_others(bits: int) -> None:
    """nonfinite="raise": FloatingPointError with the number of elements; parameters and state as "skip" leaves them."""
    results = []
    for policy in ("skip", "raise"):
        params = [torch.nn.Parameter(start()), torch.nn.Parameter(torch.ones(40))]
        optimizer = Lion(params, lr=0.01, optim_bits=bits, min_8bit_size=1, block_size=32, nonfinite=policy)
        for step, grad in enumerate(gradients(6)):
            params[0].grad, params[1].grad = grad.clone(), torch.ones(40)
            if step == 3:
                params[0].grad[0, :5], params[1].grad[7] = math.nan, math.inf
            if step == 3 and policy == "raise":
                with pytest.raises(FloatingPointError, match=r"\b6 element"):
                    optimizer.step()
            else:
                optimizer.step()
        assert optimizer.skipped_elements() == 6
        results.append([*(p.detach() for p in params), *(t for p in params for t in state_of(optimizer, p))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@EVERY_WIDTH
@pytest.mark.parametrize("bad", BAD)
def test_propagate_is_plain_arithmetic(bits: int, bad: float) -> None:
    """The momentum takes the NaN or infinity, its block with it where there are blocks; p moves by the sign of c."""
    param = torch.nn.Parameter(torch.ones(SHAPE))
    optimizer = lion(param, bits, nonfinite="propagate")
    param.grad = torch.ones(SHAPE)
    param.grad[1, 40] = bad
    optimizer.step()
    sign = 0.0 if math.isnan(bad) else math.copysign(1.0, bad)
    expected = torch.full(SHAPE, 1.0) - torch.tensor(0.01)
    expected[1, 40] = 1.0 - torch.tensor(0.01) * sign
    assert torch.equal(param.detach(), expected)
    wrong = ~optimizer.momentum(param).isfinite()
    spoiled = torch.zeros(SHAPE, dtype=torch.bool)
    spoiled[1, slice(40, 41) if bits == 32 else slice(32, 64)] = True
    assert torch.equal(wrong, spoiled)
    assert optimizer.skipped_elements() == 0


def test_the_count_grows_over_parameters_groups_and_steps() -> None:
    """Skipped elements of all parameters and steps are added up, of every width."""
    params = [torch.nn.Parameter(torch.ones(3, 64)) for _ in range(4)]
    groups = [{"params": [p], "optim_bits": bits} for p, bits in zip(params, (32, 8, 4, 2), strict=True)]
    optimizer = Lion(groups, lr=0.01, min_8bit_size=1)
    for step in range(1, 4):
        for j, param in enumerate(params):
            param.grad = torch.ones(3, 64)
            param.grad.view(-1)[: j + 1] = math.nan
        optimizer.step()
        assert optimizer.skipped_elements() == 10 * step


def test_a_tensor_of_nothing_but_nan_stays() -> None:
    """Nothing is finite: no element moves, no scale is made, and the next good gradient is the first."""
    for bits in (32, 8, 4, 2):
        param, fresh = (torch.nn.Parameter(start()) for _ in range(2))
        optimizer = lion(param, bits, rounding="nearest", cautious="mask", grad_clip=1.0)
        param.grad = torch.full(SHAPE, math.nan)
        optimizer.step()
        assert torch.equal(param.detach(), start())
        assert not any(tensor.any() for tensor in state_of(optimizer, param))
        other = lion(fresh, bits, rounding="nearest", cautious="mask", grad_clip=1.0)
        for p, o in ((param, optimizer), (fresh, other)):
            p.grad = gradients(1)[0]
            o.step()
        assert torch.equal(param.detach(), fresh.detach())
        assert torch.equal(optimizer.momentum(param), other.momentum(fresh))
