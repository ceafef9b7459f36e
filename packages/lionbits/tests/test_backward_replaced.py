"""``fuse_into_backward`` where an optimizer updates the parameters in backward already: refused, or replaced."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lionbits
from lionbits import Lion, Lion8bit, fuse_into_backward, torch_private

from .family import assert_same

with warnings.catch_warnings():  # torch warns of a part of its own
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.distributed.optim import _apply_optimizer_in_backward


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))


def backward(model: nn.Module, at: int = 0) -> None:
    generator = torch.Generator().manual_seed(at)
    (model(torch.randn(8, 64, generator=generator)) ** 2).mean().backward()


def values(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def trained_alone(steps: int = 2) -> tuple[list[Tensor], dict[str, Any]]:
    """Parameters and state dict after ``Lion8bit`` alone was fused."""
    model = network()
    optimizer = Lion8bit(model.parameters(), lr=1e-3)
    fuse_into_backward(model, optimizer)
    for step in range(steps):
        backward(model, step)
        optimizer.step()
    return values(model), copy.deepcopy(optimizer.state_dict())


@pytest.mark.parametrize("dropped", [False, True])
def test_a_cell_that_runs_twice(dropped: bool) -> None:
    """The older optimizer is kept alive by its hooks. It is named, and nothing changes."""
    model = network()
    older: Lion | None = Lion(model.parameters(), lr=1.0)
    fused = fuse_into_backward(model, older)
    if dropped:
        older = None
        gc.collect()
    newer = Lion8bit(model.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match=r"Lion updates 0\.weight, 0\.bias, 1\.weight and 1 more.*replace=True"):
        fuse_into_backward(model, newer)
    assert newer._in_backward is None
    assert not newer.state
    fused.remove()
    fuse_into_backward(model, newer)


@pytest.mark.parametrize("dropped", [False, True])
def test_the_older_one_is_replaced(dropped: bool) -> None:
    """From then on the newer one alone trains, with the bits that it has alone; the older keeps its state."""
    model = network()
    older: Lion | None = Lion(model.parameters(), lr=0.0)
    handle = fuse_into_backward(model, older)
    backward(model, 7)
    assert older is not None
    older.step()
    state = copy.deepcopy(older.state_dict())
    kept = nn.Parameter(torch.ones(3))
    kept.grad = torch.ones(3)
    if dropped:
        older = None
    newer = Lion8bit(model.parameters(), lr=1e-3)
    fuse_into_backward(model, newer, replace=True)
    for step in range(2):
        backward(model, step)
        newer.step()
    assert_same((values(model), newer.state_dict()), trained_alone())
    if older is not None:
        assert older._in_backward is None
        assert_same(older.state_dict(), state)
        older.step()
        assert_same(older.state_dict(), state)
    handle.remove()  # of what is gone: nothing happens
    assert newer._in_backward is not None


def test_gradients_that_are_there_stay() -> None:
    """A gradient from before is used by the next step, as usual."""
    model = network()
    backward(model)
    grads = [param.grad for param in model.parameters()]
    fuse_into_backward(model, Lion(model.parameters()))
    newer = Lion(model.parameters())
    fuse_into_backward(model, newer, replace=True)
    assert all(param.grad is grad for param, grad in zip(model.parameters(), grads, strict=True))
    before = values(model)
    newer.step()
    assert not torch.equal(values(model)[0], before[0])


def test_the_same_optimizer_twice() -> None:
    """Refused without ``replace``; with it the parameters are updated once, and the older handle undoes nothing."""
    model = network()
    optimizer = Lion8bit(model.parameters(), lr=1e-3)
    older = fuse_into_backward(model, optimizer)
    with pytest.raises(ValueError, match=r"fused into a backward already.*replace=True"):
        fuse_into_backward(model, optimizer)
    newer = fuse_into_backward(model, optimizer, replace=True)
    older.remove()
    assert optimizer._in_backward is newer
    for step in range(2):
        backward(model, step)
        optimizer.step()
    assert_same((values(model), optimizer.state_dict()), trained_alone())
    newer.remove()
    backward(model)
    assert all(param.grad is not None for param in model.parameters())


def test_a_part_of_the_parameters_is_shared() -> None:
    """What both hold goes to the newer one; the older goes on with the rest."""
    model = network()
    first, second = model[0], model[1]
    older = Lion(model.parameters(), lr=0.25)
    fuse_into_backward(model, older)
    newer = Lion(second.parameters(), lr=0.5)
    with pytest.raises(ValueError, match=r"Lion updates 1\.weight, 1\.bias\. "):
        fuse_into_backward(model, newer)
    fuse_into_backward(model, newer, replace=True)
    before = values(model)
    backward(model)
    moved = [(now - then).abs().max().item() for now, then in zip(values(model), before, strict=True)]
    assert moved == pytest.approx([0.25, 0.25, 0.5, 0.5])
    assert older._in_backward is not None
    older.step()
    newer.step()
    fuse_into_backward(first, Lion(first.parameters()), replace=True)
    assert older._in_backward is None


def test_a_step_of_the_newer_one_that_gets_no_gradient() -> None:
    """It is not fused, and the older one uses every gradient: a warning says so, once, and what to do."""
    model = network()
    older = Lion(model.parameters(), lr=0.25)
    fused = fuse_into_backward(model, older)
    newer = Lion8bit(model.parameters())
    backward(model)
    with pytest.warns(UserWarning, match=r"4 parameter\(s\) of this Lion8bit .* \(Lion\) .* replace=True") as caught:
        newer.step()
    assert caught[0].filename == __file__
    older.step()
    backward(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        newer.step()  # as before
        fused.remove()
        backward(model)
        newer.step()
        older.step()
    assert len(newer.state) == 4


def test_two_optimizers_over_different_parameters() -> None:
    """They are no matter to each other."""
    model = network()
    parts = [Lion(part.parameters()) for part in model]
    for part in parts:
        fuse_into_backward(model, part)
    backward(model)
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copied_model_has_no_hooks(way: str) -> None:
    """An optimizer over the copy is fused without a word, and the original's goes on with the original alone."""
    model = network()
    older = Lion(model.parameters())
    fuse_into_backward(model, older)
    other = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    newer = Lion8bit(other.parameters(), lr=1e-3)
    fuse_into_backward(other, newer)
    before = values(model)
    for step in range(2):
        backward(other, step)
        newer.step()
    assert_same(values(model), before)
    assert_same((values(other), newer.state_dict()), trained_alone())


def test_a_shallow_copy_shares_parameters() -> None:
    """And so their hooks."""
    model = network()
    fuse_into_backward(model, Lion(model.parameters()))
    with pytest.raises(ValueError, match="Lion updates"):
        fuse_into_backward(copy.copy(model), Lion8bit(model.parameters()))


def test_torchs_optimizer_in_backward() -> None:
    """It is named, and replaced."""
    model = network()
    _apply_optimizer_in_backward(torch.optim.SGD, model[0].parameters(), {"lr": 1.0})
    newer = Lion8bit(model.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match=r"SGD \(torch's optimizer-in-backward\) updates 0\.weight, 0\.bias\."):
        fuse_into_backward(model, newer)
    fuse_into_backward(model, newer, replace=True)
    for step in range(2):
        backward(model, step)
        newer.step()
    assert_same((values(model), newer.state_dict()), trained_alone())


def test_torchs_optimizer_in_backward_where_there_is_no_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that keeps its hooks elsewhere: refused, and nothing has changed."""
    model = network()
    fuse_into_backward(model[1], lion := Lion(model[1].parameters()))
    _apply_optimizer_in_backward(torch.optim.SGD, model[0].parameters(), {"lr": 1.0})
    monkeypatch.delattr("torch.distributed.optim.apply_optimizer_in_backward.param_to_optim_hook_handle_map")
    with pytest.raises(ValueError, match=r"SGD .* updates 0\.weight, 0\.bias\. Apply it to a new model\."):
        fuse_into_backward(model, Lion8bit(model.parameters()), replace=True)
    assert lion._in_backward is not None
    backward(model)
    assert all(param.grad is None for param in model[1].parameters())


def test_a_torch_that_does_not_tell_its_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fusing works, and the newer optimizer says that it gets no gradient."""
    monkeypatch.setattr(torch_private, "getattr", lambda of, name, default: default, raising=False)
    model = network()
    fuse_into_backward(model, Lion(model.parameters()))
    fuse_into_backward(model, Lion8bit(model.parameters()))
    with pytest.raises(RuntimeError, match="is gone before Lion8bit could use it"):
        backward(model)


def test_a_hook_that_frees_the_gradient_first() -> None:
    """An optimizer that somebody hooked in by hand, as torch's tutorial does: it is seen by what it leaves."""
    model = nn.Linear(64, 64)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)

    def update(param: Tensor) -> None:
        sgd.step()
        param.grad = None

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(update)
    fuse_into_backward(model, Lion(model.parameters()))
    with pytest.raises(RuntimeError, match=r"registered on the parameter earlier freed it.*Remove that hook"):
        backward(model)


def test_what_is_not_accepted() -> None:
    model = network()
    with pytest.raises(TypeError, match="replace=1 "):
        fuse_into_backward(model, Lion(model.parameters()), replace=1)  # type: ignore[arg-type]
    older = Lion(model.parameters())
    fuse_into_backward(model, older)
    raising = lionbits.Lion(model.parameters(), nonfinite="raise")
    with pytest.raises(ValueError, match="nonfinite"):
        fuse_into_backward(model, raising, replace=True)
    assert older._in_backward is not None
    backward(model)
    assert all(param.grad is None for param in model.parameters())
