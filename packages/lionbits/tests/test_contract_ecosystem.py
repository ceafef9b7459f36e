"""What torch builds around optimizers, for every variant: torch.compile, gradient release, distributed checkpoints."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import state_dict as dcp_state

from lionbits import Lion, Lion8bit

from .family import Variant, assert_same, gradient, snapshot, train, weights


def network() -> nn.Sequential:
    """A network with one quantised weight, a small one and biases."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 70), nn.ReLU(), nn.Linear(70, 3))


def inputs(step: int) -> Tensor:
    return torch.randn(8, 64, generator=torch.Generator().manual_seed(step))


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    """Forward, backward and update."""
    optimizer.zero_grad()
    loss: Tensor = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


#: At a graph break, dynamo looks at the ``.grad`` of every live tensor, the loss included, whatever the optimizer.
dynamo_looks = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Compile from nothing, and quietly: dynamo logs that profiler ranges are ignored."""
    torch._dynamo.reset()
    level = logging.getLogger("torch").level
    logging.getLogger("torch").setLevel(logging.ERROR)
    yield
    logging.getLogger("torch").setLevel(level)
    torch._dynamo.reset()


def _compare_compiled(build: Any, backend: str) -> None:
    outcomes = []
    for step_function in (training_step, torch.compile(training_step, backend=backend)):
        model = network()
        optimizer = build(model.parameters(), lr=0.01, weight_decay=0.1)
        losses = [step_function(model, optimizer, inputs(step)) for step in range(4)]
        outcomes.append((losses, snapshot(optimizer)))
    assert_same(outcomes[1], outcomes[0])


@pytest.mark.slow
@dynamo_looks
@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_training_step_equals_eager(variant: Variant) -> None:
    """torch.compile takes a training step that contains ``optimizer.step()``; nothing changes by it."""
    _compare_compiled(variant, "aot_eager")


@dynamo_looks
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles its CPU code with g++")
def test_a_training_step_compiled_by_inductor_updates_as_eager() -> None:
    """Inductor may fuse the model as it likes: given its gradients, the update is the eager one, bit for bit."""
    model = network()
    optimizer = Lion8bit(model.parameters(), lr=0.01, weight_decay=0.1)
    twin_model = copy.deepcopy(model)
    twin = Lion8bit(twin_model.parameters(), lr=0.01, weight_decay=0.1)
    compiled = torch.compile(training_step)
    for step in range(3):
        compiled(model, optimizer, inputs(step))
        for param, other in zip(model.parameters(), twin_model.parameters(), strict=True):
            assert param.grad is not None
            other.grad = param.grad.clone()
        twin.step()
    assert optimizer.state[model[0].weight]["step"] == 3
    assert_same(snapshot(optimizer), snapshot(twin))


def test_an_optimizer_per_parameter_in_gradient_hooks(variant: Variant) -> None:
    """Updating each parameter as its gradient arrives equals one optimizer, with nearest rounding.

    Only with nearest: unbiased noise depends on a parameter's position in its optimizer, which is 0 for each here.
    """
    released, whole = network(), network()
    single = variant(whole.parameters(), lr=0.01, rounding="nearest")
    optimizers = {param: variant([param], lr=0.01, rounding="nearest") for param in released.parameters()}

    def update(param: Tensor) -> None:
        optimizers[param].step()  # type: ignore[index]
        optimizers[param].zero_grad()  # type: ignore[index]

    for param in released.parameters():
        param.register_post_accumulate_grad_hook(update)
    for step in range(3):
        training_step(whole, single, inputs(step))
        released(inputs(step)).square().mean().backward()
        assert all(param.grad is None for param in released.parameters())
    assert_same(list(released.state_dict().values()), list(whole.state_dict().values()))
    for param, other in zip(released.parameters(), whole.parameters(), strict=True):
        assert_same(dict(optimizers[param].state[param]), dict(single.state[other]))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's, while it imports itself
def test_apply_optimizer_in_backward(variant: Variant) -> None:
    """torch's own gradient release builds and drives the optimizers."""
    from torch.distributed.optim import _apply_optimizer_in_backward

    released, whole = network(), network()
    settings = {"lr": 0.01, "rounding": "nearest", **variant.settings}
    _apply_optimizer_in_backward(variant.cls, released.parameters(), settings)
    single = variant(whole.parameters(), lr=0.01, rounding="nearest")
    for step in range(3):
        training_step(whole, single, inputs(step))
        released(inputs(step)).square().mean().backward()
    assert_same(list(released.state_dict().values()), list(whole.state_dict().values()))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors have this dtype, as ``torch.set_default_dtype`` does for good."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device meta": lambda: torch.device("meta"),  # stands for any device that is not the parameters'
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
@pytest.mark.parametrize(
    "settings", [{}, {"param_rounding": "stochastic", "block_wise": False, "percentile_clipping": 50}]
)
def test_surroundings_do_not_matter(variant: Variant, name: str, settings: dict[str, Any]) -> None:
    """torch's default dtype and device, and autocast, are about the model: steps, momentum and loading ignore them."""
    outcomes = []
    for surroundings in (nullcontext, SURROUNDINGS[name]):
        params = weights(torch.bfloat16)
        optimizer, resumed = variant(params, **settings), variant(copy.deepcopy(params), **settings)
        for step in (1, 2):
            for position, param in enumerate(params):
                param.grad = gradient(param, position, step)
            with surroundings():
                optimizer.step()
        with surroundings():
            momenta = [optimizer.momentum(param) for param in params]
            resumed.load_state_dict(optimizer.state_dict())
        outcomes.append((snapshot(optimizer), snapshot(resumed), momenta))
    assert_same(outcomes[1], outcomes[0])


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
def test_priming_makes_all_state_and_moves_nothing(variant: Variant, tensor_lr: bool) -> None:
    """A step with zero gradients at lr 0, as distributed checkpoints do it, makes the state and changes no weight."""
    model = network().bfloat16()
    model[2].bias.requires_grad_(False)
    lr = torch.tensor(0.1) if tensor_lr else 0.1
    settings = {"weight_decay": 0.5, "percentile_clipping": 50, "param_rounding": "stochastic"}
    optimizer = variant(model.parameters(), lr=lr, **settings)
    before = copy.deepcopy(model.state_dict())
    dcp_state._init_optim_state(optimizer)
    assert_same(dict(model.state_dict()), dict(before))
    assert optimizer.param_groups[0]["lr"] is lr
    assert set(optimizer.state) == {param for param in model.parameters() if param.requires_grad}
    assert not any(optimizer.momentum(param).any() for param in model.parameters())
    train(optimizer, [model[0].weight], [1])
    assert not torch.equal(model[0].weight, before["0.weight"])


@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flat"])
def test_distributed_state_dict_round_trip(variant: Variant, flatten: bool) -> None:
    """get_ and set_optimizer_state_dict carry everything to another model and optimizer, keyed by parameter name."""
    options = dcp_state.StateDictOptions(flatten_optimizer_state_dict=flatten)
    settings = {"percentile_clipping": 80, "param_rounding": "compensated"}
    model = network().bfloat16()
    optimizer = variant(model.parameters(), lr=0.01, seed=5, **settings)
    for step in range(3):
        training_step(model, optimizer, inputs(step).bfloat16())
    saved = copy.deepcopy(dcp_state.get_optimizer_state_dict(model, optimizer, options=options))
    keys = saved if flatten else saved["state"]
    assert any("0.weight" in key for key in keys)
    other_model = copy.deepcopy(model)
    other = variant(other_model.parameters(), lr=0.5, **settings)
    dcp_state.set_optimizer_state_dict(other_model, other, saved, options=options)
    assert_same(snapshot(other)["state"], snapshot(optimizer)["state"])
    assert_same(other.state_dict()["param_groups"], optimizer.state_dict()["param_groups"])
    for step in range(3, 5):
        training_step(model, optimizer, inputs(step).bfloat16())
        training_step(other_model, other, inputs(step).bfloat16())
    assert_same(snapshot(other)["params"], snapshot(optimizer)["params"])
    assert_same(snapshot(other)["state"], snapshot(optimizer)["state"])


@cache
def torch_takes_holes() -> bool:
    """Whether torch's own AdamW gets its state back where one parameter has none."""
    model, options = network(), dcp_state.StateDictOptions(strict=False)
    optimizer = torch.optim.AdamW(model.parameters())
    train(optimizer, [model[0].weight], [1])
    optimizer.zero_grad()
    saved = dcp_state.get_optimizer_state_dict(model, optimizer, options=options)
    try:
        dcp_state.set_optimizer_state_dict(model, optimizer, saved, options=options)
    except KeyError:
        return False
    return True


@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flat"])
def test_distributed_state_dict_with_state_for_some_parameters_only(variant: Variant, flatten: bool) -> None:
    """A parameter that never had a gradient has no state, before and after; its first step still works.

    Nested, torch takes a state dict with holes with strict=False only, or not at all (2.9); flat, it fills them with
    empty dicts.
    """
    if not flatten and not torch_takes_holes():
        pytest.skip("this torch wants state of every parameter in a nested state dict, of AdamW too")
    options = dcp_state.StateDictOptions(flatten_optimizer_state_dict=flatten, strict=False)
    model = network()
    optimizer = variant(model.parameters())
    train(optimizer, [model[0].weight], [1])
    optimizer.zero_grad()
    saved = copy.deepcopy(dcp_state.get_optimizer_state_dict(model, optimizer, options=options))
    dcp_state.set_optimizer_state_dict(model, optimizer, saved, options=options)
    assert optimizer.state[model[0].weight]["step"] == 1
    assert not optimizer.state.get(model[2].weight)
    train(optimizer, list(model.parameters()), [2])
    assert [optimizer.state[param]["step"] for param in model.parameters()] == [2, 1, 1, 1]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")  # torch's own, in 2.9
def test_a_distributed_checkpoint_on_disk_continues(tmp_path: Path) -> None:
    """torch.distributed.checkpoint writes and reads codes and scales as they are."""
    model = network()
    optimizer: Lion = Lion8bit(model.parameters(), lr=0.01)
    training_step(model, optimizer, inputs(0))
    dcp.save(dcp_state.get_optimizer_state_dict(model, optimizer), checkpoint_id=tmp_path, no_dist=True)
    other_model = copy.deepcopy(model)
    other = Lion8bit(other_model.parameters(), lr=0.5)
    loaded = dcp_state.get_optimizer_state_dict(other_model, other)
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    dcp_state.set_optimizer_state_dict(other_model, other, loaded)
    assert_same(other.state_dict(), optimizer.state_dict())
