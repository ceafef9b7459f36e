"""``fuse_into_backward``: parameters are updated and gradients freed while backward runs; the bits are a step's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lionbits
from lionbits import Lion, fuse_into_backward

from .family import Variant, assert_same, snapshot
from .movers import moving
from .pages import due, run


class Net(nn.Module):
    """A layer that is used twice, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice, self.last = nn.Linear(40, 64), nn.Linear(64, 64), nn.Linear(64, 40)
        self.unused = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        """As small as it can be and still have all of that."""
        out: Tensor = self.last(self.twice(torch.tanh(self.twice(torch.tanh(self.first(x))))))
        return out


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """The loop that everybody writes."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        (model(torch.randn(16, 40, generator=generator)) ** 2).mean().backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= 0.9


def result(model: nn.Module, optimizer: Lion) -> list[Any]:
    """Parameters, and their momentum, of those that were updated."""
    used = [param for name, param in model.named_parameters() if "unused" not in name]
    return [[param.detach() for param in used], [optimizer.momentum(param) for param in used]]


@pytest.mark.parametrize("settings", [{}, {"cautious": "mask"}, {"percentile_clipping": 30, "grad_clip": 0.1}])
def test_the_bits_are_those_of_a_step(variant: Variant, settings: dict[str, Any]) -> None:
    """Of every variant."""
    if "grad_clip" in settings and "QLion" in variant.name:
        settings = {"grad_clip": 0.1}
    elif "QLion" in variant.name and settings:
        settings = {"cautious": True}
    results = []
    for fused in (False, True):
        model = Net()
        more = {} if "QLion" in variant.name else {"min_8bit_size": 100}
        optimizer = variant(model.parameters(), lr=1e-3, weight_decay=0.1, **more, **settings)
        if fused:
            fuse_into_backward(model, optimizer)
        train(model, optimizer, range(4))
        results.append(result(model, optimizer))
    assert_same(*results)


@pytest.mark.parametrize("budget", [0, 30_000, None])
@pytest.mark.parametrize("compute", ["device", "host"])
def test_paged_state_follows_the_gradients(budget: int | None, compute: str) -> None:
    """Pages come and go in the order in which gradients do, in staging buffers of one budget."""
    if compute == "host" and budget is not None:
        return
    results = []
    for fused in (False, True):
        model = Net()
        params = list(model.parameters())
        if fused:
            optimizer = moving(params, 3000, budget, paged_compute=compute, backend="reference")
            fuse_into_backward(model, optimizer)
        else:
            optimizer = Lion(params)
        train(model, optimizer, range(3))
        results.append(result(model, optimizer))
    assert_same(*results)
    if budget is not None:
        stays = _staying(optimizer, budget)
        optimizer.load_state_dict(optimizer.state_dict())
        train(model, optimizer, range(3, 4))
        assert _staying(optimizer, budget) == stays


def _staying(optimizer: Lion, budget: int) -> int:
    """Bytes that stay on the device, which are within the budget."""
    stays: int = sum(tensor.nbytes for tensor in optimizer._get_prefetcher().placement._staying)
    assert (stays > 0) == (budget > 0)
    assert stays + optimizer.paging_stats().passing_bytes <= max(budget, 3 * 3000)
    return stays


def test_no_two_gradients_live_at_once() -> None:
    """When a gradient is there, those before it are gone."""
    model = Net()
    optimizer = lionbits.Lion8bit(model.parameters())
    alive = []

    def count(_: Tensor) -> None:
        alive.append(sum(param.grad is not None for param in model.parameters()))

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(count)
    fuse_into_backward(model, optimizer)
    train(model, optimizer, range(2))
    assert alive == [1] * 12
    assert all(param.grad is None for param in model.parameters())


def test_a_checkpoint_in_between_changes_nothing() -> None:
    """Save after some steps, load into a fused optimizer over a copy of the model, go on."""
    model = Net()
    optimizer = lionbits.Lion8bit(model.parameters(), min_8bit_size=100)
    fuse_into_backward(model, optimizer)
    train(model, optimizer, range(2))
    other = copy.deepcopy(model)
    again = lionbits.PagedLion8bit(other.parameters(), min_8bit_size=100)
    fuse_into_backward(other, again)
    train(other, again, range(5, 6))
    other.load_state_dict(model.state_dict())
    again.load_state_dict(optimizer.state_dict())
    for held, fused in ((model, optimizer), (other, again)):
        train(held, fused, range(2, 4))
    assert_same(result(model, optimizer), result(other, again))


def test_what_is_left_is_updated_by_step() -> None:
    """Parameters of another module, and those that came later."""
    model, more = Net(), nn.Parameter(torch.ones(8, 8))
    optimizer = Lion(model.parameters())
    fuse_into_backward(model, optimizer)
    optimizer.add_param_group({"params": [more]})
    (model(torch.ones(1, 40)).sum() + more.sum()).backward()
    assert torch.equal(more, torch.ones(8, 8))
    assert not optimizer.momentum(model.first.weight).eq(0).all()
    optimizer.step()
    assert not torch.equal(more, torch.ones(8, 8))


def test_remove_undoes_it() -> None:
    """Gradients stay, and step uses them."""
    model = Net()
    optimizer = Lion(model.parameters())
    fused = fuse_into_backward(model, optimizer)
    fused.remove()
    before = snapshot(optimizer)["params"]
    model(torch.ones(1, 40)).sum().backward()
    assert_same(snapshot(optimizer)["params"], before)
    assert model.first.weight.grad is not None
    optimizer.step()
    fuse_into_backward(model, optimizer)


def test_a_second_gradient_is_refused() -> None:
    """The first is used and gone: there is nothing to add it to."""
    model = Net()
    optimizer = Lion(model.parameters())
    fuse_into_backward(model, optimizer)
    model(torch.ones(1, 40)).sum().backward()
    once = snapshot(optimizer)["params"]
    with pytest.raises(RuntimeError, match="Call step\\(\\) after every backward"):
        model(torch.ones(1, 40)).sum().backward()
    assert_same(snapshot(optimizer)["params"], once)


def test_a_grad_scaler_is_refused() -> None:
    """What it scaled has been used."""
    model = Net()
    optimizer = Lion(model.parameters())
    fuse_into_backward(model, optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 40)).sum()).backward()
    with pytest.raises(RuntimeError, match="GradScaler cannot be used"):
        scaler.step(optimizer)


class Wrapper(nn.parallel.DistributedDataParallel):
    """Is one, and needs no process group."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: (net, Lion([nn.Parameter(torch.ones(3))])), "has no parameter"),
        (lambda net: (Wrapper(net), Lion(net.parameters())), "averages gradients"),
        (lambda net: (net, Lion(net.parameters(), nonfinite="raise")), "nonfinite"),
    ],
)
def test_refusals_change_nothing(make: Callable[[nn.Module], tuple[nn.Module, Lion]], message: str) -> None:
    """No hook is left behind."""
    net = Net()
    model, optimizer = make(net)
    with pytest.raises(ValueError, match=message):
        fuse_into_backward(model, optimizer)
    net(torch.ones(1, 40)).sum().backward()
    assert net.first.weight.grad is not None
    assert not optimizer.state


def test_twice_is_refused() -> None:
    """And a module is asked for."""
    model = Net()
    optimizer = Lion(model.parameters())
    fuse_into_backward(model, optimizer)
    with pytest.raises(ValueError, match="fused into a backward already"):
        fuse_into_backward(model, optimizer)
    with pytest.raises(TypeError, match=r"optimizer=<AdamW> .* must be an optimizer of lionbits"):
        fuse_into_backward(model, torch.optim.AdamW(model.parameters()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model="):
        fuse_into_backward(model.parameters(), optimizer)  # type: ignore[arg-type]


def test_a_copy_is_not_fused() -> None:
    """Hooks belong to parameters, and the copy has its own."""
    model = Net()
    optimizer = Lion(model.parameters())
    fuse_into_backward(model, optimizer)
    train(model, optimizer, range(1))
    both = copy.deepcopy((model, optimizer))
    assert both[1]._in_backward is None


def test_the_page_about_it_runs() -> None:
    """docs/backward.md, as it stands."""
    (page,) = due(__file__)
    seen = run(page)
    assert [state["step"] for state in seen["optimizer"].state.values()] == [3] * 4
    assert all(param.grad is None for param in seen["model"].parameters())
