"""bitsandbytes 0.50.2 on the CPU as a witness from outside: another hand wrote Lion; it agrees but for roundings.

Its float32 step is ``p.mul_(1 - lr*wd)``, ``m.mul(b1).add(g, alpha=1-b1)``, ``p.add_(sign, alpha=-lr)``,
``m.mul_(b2).add_(g, alpha=1-b2)``. Where this differs from ours, step by step:

* ``add(g, alpha=a)`` is a fused multiply-add wherever the CPU has one: g*a is not rounded before it is added, ours
  is. The two sums differ by at most half an ulp of g*a before their own rounding, so by at most one ulp of the largest
  of the three numbers after it. Where the summands cancel that is many ulps of the sum: ulps are counted at the
  largest.
* ``1 - lr*wd`` is formed in binary64 and rounded once; ours in binary32 from rounded lr and wd. Both are the same
  float32 number or, for few lr and wd, neighbours. p times neighbours differs by at most one ulp of p; taking lr off
  rounds once more, and where that meets a tie (12 elements of the million below) one ulp becomes two.
* ``add_(sign, alpha=-lr)`` multiplies lr by -1, 0 or 1, which is exact: fused or not, the same.
* ``1-b1`` and ``1-b2`` are formed in binary64 and rounded once by both.

So after one step from equal state: momentum within one ulp (of the largest of m*b2, g*(1-b2) and m'); parameters equal
bit for bit where 1 - lr*wd is, else within one ulp per rounding; and the direction equal wherever c is not itself lost
in the rounding of its summands.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import lionbits
from lionbits import Lion4bit, Lion8bit, Lion32bit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside its own import
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="the witness: pip install bitsandbytes==0.50.2")

pytestmark = [
    pytest.mark.skipif(bitsandbytes.__version__ != "0.50.2", reason="the comments explain 0.50.2"),
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
]

SHAPES = ((1,), (33,), (64, 64), (3, 5, 7), (257, 31), (2, 3, 4, 5), ())
DECAYS = (0.0, 1e-3, 0.1, 0.76)  # with a rate of 0.03, 0.76 is one of the few where the two forms of 1 - lr*wd differ
RATES = (1e-4, 1e-3, 0.03)
BETAS = ((0.9, 0.99), (0.95, 0.98), (0.5, 0.75))
SIX = ("Lion", "Lion32bit", "Lion8bit", "PagedLion", "PagedLion32bit", "PagedLion8bit")


def ulp(x: Tensor) -> Tensor:
    """The distance from |x| to the next float32."""
    return torch.nextafter(x.abs(), torch.tensor(torch.inf)) - x.abs()


class Step(NamedTuple):
    """One step of both from equal state: what there was, and what came out."""

    p: Tensor
    m: Tensor
    g: Tensor
    betas: tuple[float, float]
    lr: float
    decay: float
    ours: tuple[Tensor, Tensor]
    theirs: tuple[Tensor, Tensor]

    def keeps_are_equal(self) -> bool:
        """Whether 1 - lr*wd is the same float32 formed in binary32 and in binary64."""
        return bool(1 - torch.tensor(self.lr) * torch.tensor(self.decay) == torch.tensor(1.0 - self.lr * self.decay))

    def summands(self, beta: float) -> Tensor:
        """Magnitude of the larger of m*beta and g*(1-beta)."""
        return torch.maximum((self.m * beta).abs(), (self.g * (1 - beta)).abs())


def steps(shape: tuple[int, ...], kind: str) -> Iterator[Step]:
    """Four steps for every decay, rate and betas; ours starts each from their parameters and momentum."""
    for decay, lr, betas in itertools.product(DECAYS, RATES, BETAS):
        generator = torch.Generator().manual_seed(len(shape) + 1)
        start = torch.randn(shape, generator=generator)
        ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        mine = Lion32bit([ours], lr, betas, decay)
        other = bitsandbytes.optim.Lion32bit([theirs], lr, betas, decay)
        m = torch.zeros(shape)
        for count in range(4):
            g = torch.randn(shape, generator=generator)
            if kind == "cancelling" and count:
                g = -m * (betas[0] / (1 - betas[0])) * (1 + g.sign() * 2.0**-23)
            before = theirs.detach().clone()
            ours.grad, theirs.grad = g.clone(), g.clone()
            mine.step()
            other.step()
            their_m = other.state[theirs]["state1"]
            result = (ours.detach().clone(), mine.momentum(ours)), (theirs.detach().clone(), their_m.clone())
            yield Step(before, m, g, betas, lr, decay, *result)
            m = their_m.clone()
            ours.data.copy_(theirs.data)
            mine.state[ours]["exp_avg"].copy_(m)


@pytest.mark.parametrize("kind", ["random", "cancelling"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_momentum_agrees_to_an_ulp(shape: tuple[int, ...], kind: str) -> None:
    """After a step from equal state the momenta are within one ulp, counted at the largest number of the sum."""
    for step in steps(shape, kind):
        allowed = ulp(torch.maximum(step.summands(step.betas[1]), step.theirs[1].abs()))
        assert ((step.ours[1] - step.theirs[1]).abs() <= allowed).all()


@pytest.mark.parametrize("kind", ["random", "cancelling"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parameters_agree_to_the_last_bit_or_an_ulp_per_rounding(shape: tuple[int, ...], kind: str) -> None:
    """After a step from equal state parameters are equal where keep is, unless rounding decided the direction."""
    for step in steps(shape, kind):
        ours, theirs = step.ours[0], step.theirs[0]
        largest = torch.stack([step.p.abs(), ours.abs(), theirs.abs()]).amax(dim=0)
        roundings = 0 if step.keeps_are_equal() else 2
        near = (ours - theirs).abs() <= roundings * ulp(largest)
        b1 = step.betas[0]
        c = step.m.double() * b1 + step.g.double() * (1 - b1)
        undecided = c.abs() <= 2 * ulp(step.summands(b1))
        assert (near | undecided).all()
        assert kind == "cancelling" or not undecided.any()


def test_the_witness_is_another_implementation() -> None:
    """The differences that the tests above allow do occur, each of them: nobody compares a thing with itself."""
    momenta = parameters = directions = 0
    for step in steps((257, 31), "random"):
        momenta += int((step.ours[1] != step.theirs[1]).sum())
        parameters += int((step.ours[0] != step.theirs[0]).sum())
    for step in steps((257, 31), "cancelling"):
        directions += int(((step.ours[0] - step.theirs[0]).abs() > step.lr / 2).sum())
    assert parameters > 0
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":  # a CPU with fused multiply-add
        assert momenta > 0
        assert directions > 0


@pytest.mark.parametrize("name", SIX)
def test_a_changed_import_line_is_the_migration(name: str) -> None:
    """The call that builds theirs builds ours, by position as far as the classic and the present order agree."""
    theirs, ours = getattr(bitsandbytes.optim, name), getattr(lionbits, name)
    order = list(inspect.signature(theirs).parameters)
    shared = order[: order.index("min_8bit_size") + 1]
    assert list(inspect.signature(ours).parameters)[: len(shared)] == shared
    values = {"lr": 1e-3, "betas": (0.8, 0.9), "weight_decay": 0.1}
    values |= {"optim_bits": 8, "args": None, "min_8bit_size": 2048}
    given = [values[key] for key in shared[1:]]
    groups = []
    for cls in (theirs, ours):
        param = nn.Parameter(torch.ones(64, 64))
        optimizer = cls([param], *given)
        param.grad = torch.ones(64, 64)
        optimizer.step()
        assert torch.equal(param, torch.full((64, 64), 1 - 1e-3 * 0.1) - 1e-3)
        groups.append({key: optimizer.param_groups[0][key] for key in ("lr", "betas", "weight_decay")})
    assert groups[0] == groups[1]
    bits = 8 if "8" in name or "optim_bits" in shared else 32
    assert optimizer.param_groups[0]["optim_bits"] == bits
    assert optimizer.param_groups[0]["min_8bit_size"] == 2048


def test_their_is_paged_by_position_is_not_misread() -> None:
    """bitsandbytes 0.50 has is_paged where percentile_clipping stood: a bool there is refused, not taken for 0 or 1."""
    arguments: tuple[Any, ...] = (1e-3, (0.9, 0.99), 0.0, 32, None, 4096, False)
    bitsandbytes.optim.Lion([nn.Parameter(torch.ones(3))], *arguments)
    with pytest.raises(TypeError, match="percentile_clipping=False"):
        lionbits.Lion([nn.Parameter(torch.ones(3))], *arguments)


def turned_after(cls: type[torch.optim.Optimizer], patience: int) -> float:
    """Steps until an element turns, on average, after its gradient went from +1 (70 steps) to -0.2 for good.

    The first element of every block keeps its +1, and so keeps the block's scale where it is.
    """
    param = nn.Parameter(torch.zeros(16, 256))
    optimizer = cls([param], lr=2**-10)
    anchor = (torch.arange(param.numel()) % 256 == 0).view(param.shape)
    turned = torch.full(param.shape, torch.inf)
    for step in range(-70, patience):
        before = param.detach().clone()
        param.grad = torch.where(anchor, 1.0, 1.0 if step < 0 else -0.2)
        optimizer.step()
        if step >= 0:
            turned[(param.detach() > before) & turned.isinf()] = step
    assert turned[anchor].isinf().all()
    return turned[~anchor].mean().item()


def test_a_note_on_why_rounding_is_unbiased() -> None:
    """Their 8-bit momentum sticks: it never turns around after the gradient has; ours does when 32 bits do."""

    exact = turned_after(Lion32bit, 130)
    assert exact == 115
    assert turned_after(Lion8bit, 160) <= 1.2 * exact
    assert turned_after(Lion4bit, 250) <= 2 * exact
    assert turned_after(bitsandbytes.optim.Lion32bit, 130) == exact
    assert turned_after(bitsandbytes.optim.Lion8bit, 600) == torch.inf
