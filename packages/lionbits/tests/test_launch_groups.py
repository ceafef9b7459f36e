"""Parameters of several groups that one launch updates: each gets what it would get by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion

from .family import gradient, weights

SHAPES = ((8, 64), (4, 96), (300,), (8, 64))
GROUPS: list[dict[str, Any]] = [
    {"lr": 0.01},
    {"lr": 0.02, "grad_clip": 0.01, "maximize": True},
    {"lr": 0.03, "percentile_clipping": 5, "weight_decay": 0.5},
    {"lr": 0.04, "grad_clip": 0.5, "percentile_clipping": 50, "maximize": True},
]


def train(
    groups: list[dict[str, Any]],
    shapes: tuple[tuple[int, ...], ...],
    numbers: list[int],
    scale: float | None,
    steps: int,
    **more: Any,
) -> list[dict[str, Any]]:
    """Parameter and state of each, which has a group of its own and the gradients of its number."""
    params = weights(shapes=shapes)
    optimizer = Lion([{"params": [p], **group} for p, group in zip(params, groups, strict=True)], **more)
    for step in range(1, steps + 1):
        for param, number in zip(params, numbers, strict=True):
            param.grad = gradient(param, number, step) * (1 if scale is None else scale)
        if scale is not None:
            optimizer.grad_scale = torch.tensor(scale)  # type: ignore[attr-defined]
        optimizer.step()
    return [{"param": param.detach().clone(), **optimizer.state[param]} for param in params]


def same(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.keys() == want.keys()
    for key, value in got.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(want[key])), key


@pytest.mark.parametrize("more", [{}, {"cautious": "mask"}, {"optim_bits": 8, "block_wise": False, "min_8bit_size": 1}])
@pytest.mark.parametrize("scale", [None, 65536.0], ids=["no scale", "loss scale"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2)], ids=str)
def test_together_as_by_itself(order: tuple[int, ...], scale: float | None, more: dict[str, Any]) -> None:
    """Groups that clip and groups that do not, in any order, under a loss scale that is a power of two or none."""
    more = {**more, "rounding": "nearest"}  # so that nothing depends on a position
    together = train([GROUPS[j] for j in order], tuple(SHAPES[j] for j in order), list(order), scale, 4, **more)
    for at, j in enumerate(order):
        param = weights(shapes=[SHAPES[i] for i in order])[at]
        optimizer = Lion([{"params": [param], **GROUPS[j]}], **more)
        for step in range(1, 5):
            param.grad = gradient(param, j, step)
            optimizer.step()
        same(together[at], {"param": param.detach(), **optimizer.state[param]})


@pytest.mark.parametrize("scale", [None, 3.0, 1024.0], ids=str)
def test_the_last_hundred_norms_are_remembered(scale: float | None) -> None:
    """Of 130 updates number s is at s mod 100; what limits is the least of them, of the norms without the scale."""
    param = nn.Parameter(torch.zeros(1))
    optimizer = Lion([param], percentile_clipping=1)
    norms = torch.zeros(100)
    for step in range(1, 131):
        param.grad = torch.full((1,), float(200 - step)) * (scale or 1)
        if scale is not None:
            optimizer.grad_scale = torch.tensor(scale)  # type: ignore[attr-defined]
        before = optimizer.momentum(param).clone()
        optimizer.step()
        norm = param.grad.abs() * torch.tensor(1 / (scale or 1))
        norms = norm.expand(100).clone() if step == 1 else norms
        norms[step % 100] = norm
        assert torch.equal(optimizer.state[param]["grad_norms"], norms)
        assert torch.isclose(optimizer.momentum(param) - 0.99 * before, 0.01 * norms.min(), rtol=1e-4)


def test_what_is_frozen_has_a_position() -> None:
    """Noise of what follows depends on how many parameters there are before it, not on how many learn."""

    def trained(before: list[nn.Parameter], late: bool = False) -> torch.Tensor:
        (param,) = weights(torch.bfloat16, [(8, 64)])
        optimizer = Lion([*before, param], lr=1e-3, param_rounding="stochastic")
        for step in (1, 2, 3):
            param.grad = gradient(param, 0, step)
            optimizer.step()
            for each in before if late else []:
                each.requires_grad_(not each.requires_grad)
        return param.detach()

    def other(learns: bool) -> list[nn.Parameter]:
        return [nn.Parameter(torch.ones(3), requires_grad=learns)]

    wanted = trained(other(learns=True))
    assert torch.equal(trained(other(learns=False)), wanted)
    assert torch.equal(trained(other(learns=False), late=True), wanted)
    assert not torch.equal(trained([]), wanted)


def test_elements_that_are_skipped_do_not_count_for_the_norm_where_they_raise() -> None:
    """``nonfinite="raise"`` clips as ``"skip"`` does."""
    results = []
    for policy in ("skip", "raise"):
        (param,) = weights(shapes=[(8, 64)])
        optimizer = Lion([param], nonfinite=policy, grad_clip=0.01)
        param.grad = gradient(param, 0, 1)
        param.grad[0, 0] = torch.inf
        if policy == "raise":
            with pytest.raises(FloatingPointError):
                optimizer.step()
        else:
            optimizer.step()
        results.append(optimizer.momentum(param))
    assert torch.equal(*results)
    assert results[0].abs().max() > 0


def test_each_mask_makes_up_for_its_own() -> None:
    """Masks that kernels do not tell apart have factors of their own."""
    masks: list[dict[str, Any]] = [{"cautious": mask} for mask in ("mask", "c-optim", "timm")]
    together = train(masks, SHAPES[:3], [0, 1, 2], None, 3, lr=0.01)
    for at, mask in enumerate(masks):
        alone = train([mask] * 3, SHAPES[:3], [0, 1, 2], None, 3, lr=0.01)
        same(together[at], alone[at])
    assert not torch.equal(
        together[0]["param"], train(masks[1:2] * 3, SHAPES[:3], [0, 1, 2], None, 3, lr=0.01)[0]["param"]
    )


def test_a_norm_is_remembered_by_the_count_of_its_own_parameter() -> None:
    """One whose first gradient came late has fewer updates than others of its launch."""
    params = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = Lion(params, percentile_clipping=50)
    for step in (1, 2, 3):
        for late, param in enumerate(params):
            param.grad = torch.tensor([float(step), 0.0]) if step > 2 * late else None
        optimizer.step()
    norms = [optimizer.state[param]["grad_norms"] for param in params]
    assert norms[0][:5].tolist() == [1.0, 1.0, 2.0, 3.0, 1.0]
    params[1].grad = torch.tensor([7.0, 0.0])
    params[0].grad = torch.tensor([9.0, 0.0])
    optimizer.step()
    assert norms[1][:5].tolist() == [3.0, 3.0, 7.0, 3.0, 3.0]
    assert norms[0][:5].tolist() == [1.0, 1.0, 2.0, 3.0, 9.0]
