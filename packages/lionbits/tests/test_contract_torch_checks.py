"""torch's own optimizer checks, restated: the family is registered like torch's optimizers.

torch ships ``OptimizerInfo``, the lists of inputs that must fail, and ``TensorTracker``, but not the tests that
use them (test/test_optim.py); these follow that file, with equality of bits where it has tolerances.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, LinearLR, ReduceLROnPlateau, StepLR

from lionbits import QLion

from .family import Variant, train, weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's, while it imports its own test tools
    common = pytest.importorskip(
        "torch.testing._internal.common_optimizers", reason="torch's test tools need the package expecttest"
    )
    from torch.testing._internal.common_utils import TestCase

EXACT = {"rtol": 0, "atol": 0}

#: Ways to call Lion, as ``optim_inputs_func`` of torch's registry lists them.
INPUTS: tuple[dict[str, Any], ...] = (
    {},
    {"lr": 0.01},
    {"lr": torch.tensor(0.001)},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "maximize": True},
    {"betas": (0.8, 0.9), "grad_clip": 0.5},
    {"percentile_clipping": 50, "nonfinite": "propagate"},
    {"rounding": "stochastic", "seed": 3},
)

SCHEDULERS = (
    [],
    [lambda opt: StepLR(opt, gamma=0.9, step_size=10)],
    [lambda opt: LinearLR(opt, start_factor=0.4, end_factor=1, total_iters=4)],
    [lambda opt: StepLR(opt, gamma=0.9, step_size=10), ReduceLROnPlateau],
    [lambda opt: ExponentialLR(opt, gamma=0.99)],
)


def info(variant: Variant) -> Any:
    """The variant as torch registers an optimizer: no flag of the foreach kind, dense real parameters only."""

    def inputs(device: str, dtype: torch.dtype | None = None) -> list[Any]:
        every = [*INPUTS, {"cautious": True} if issubclass(variant.cls, QLion) else {"cautious": "mask"}]
        return [common.OptimizerInput(None, {**variant.settings, **kwargs}, str(kwargs)) for kwargs in every]

    return common.OptimizerInfo(
        variant.cls,
        optim_inputs_func=inputs,
        scheduler_inputs=SCHEDULERS,
        supported_impls=(),
        supports_complex=False,
        optim_error_inputs_func=common.get_error_inputs_for_all_optims,
    )


def inputs_of(variant: Variant) -> list[Any]:
    """Every registered way to call the variant, a fresh copy of each."""
    every: list[Any] = common._get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, info(variant))
    assert len(every) == len(INPUTS) + 1
    return copy.deepcopy(every)


def test_errors(variant: Variant) -> None:
    """What every torch optimizer refuses, the family refuses with the same type and text; also what torch warns of."""
    inputs = info(variant).optim_error_inputs_func("cpu", torch.float32)
    assert len(inputs) >= 6
    for error in inputs:
        given = error.optimizer_error_input
        params = weights() if given.params is None else given.params
        kind = (TypeError, ValueError) if issubclass(error.error_type, Warning) else error.error_type
        with pytest.raises(kind, match=error.error_regex):
            variant(params, **given.kwargs)


def _descends(variant: Variant, kwargs: dict[str, Any], schedulers: list[Any], contiguous: bool) -> None:
    """Twenty steps towards (or with maximize away from) zero loss; torch's test_forloop_goes_right_direction."""
    generator = torch.Generator().manual_seed(1)
    shape = ((10, 5), (10,)) if contiguous else ((10, 5, 2), (10, 2))
    tensors = [torch.randn(size, generator=generator) for size in shape]
    weight, bias = (nn.Parameter(x if contiguous else x[..., 0]) for x in tensors)
    x = torch.randn(5, generator=generator)
    optimizer = variant.cls([weight, bias], **kwargs)
    clocks = [make(optimizer) for make in schedulers]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).pow(2).sum()
        loss.backward()
        return loss.detach()

    first = optimizer.step(closure)
    for _ in range(20):
        loss = optimizer.step(closure)
        for clock in clocks:
            clock.step(*((loss,) if isinstance(clock, ReduceLROnPlateau) else ()))
    assert (closure() > first) if kwargs.get("maximize") else (closure() < first)
    assert weight.is_contiguous() == contiguous


def test_goes_in_the_right_direction(variant: Variant) -> None:
    """Whatever the settings, schedulers and strides, the loss falls, or rises where it is maximized."""
    for contiguous, given in itertools.product((True, False), inputs_of(variant)):
        _descends(variant, given.kwargs, [], contiguous)
    for schedulers in info(variant).scheduler_inputs:
        _descends(variant, {**variant.settings}, schedulers, contiguous=True)


def test_param_groups_weight_decay(variant: Variant) -> None:
    """Decay that is set for one group makes its weights smaller than another's that are otherwise alike."""
    for given in inputs_of(variant):
        kwargs = {**given.kwargs, "lr": 0.01}
        kwargs.pop("weight_decay", None)
        first, second = nn.Parameter(torch.full((10,), 8.0)), nn.Parameter(torch.full((10,), 8.0))
        optimizer = variant.cls([{"params": [first], "weight_decay": 0.5}, {"params": [second]}], **kwargs)
        for _ in range(5):
            optimizer.zero_grad()
            (first.sum() + second.sum()).backward()
            optimizer.step()
        assert (first < second).all()


def test_param_groups_lr(variant: Variant) -> None:
    """A group at learning rate 0 stands still while the other goes down."""
    for given in inputs_of(variant):
        kwargs = {**given.kwargs, "maximize": False, "weight_decay": 0.0}
        moving, still = nn.Parameter(torch.ones(10)), nn.Parameter(torch.ones(10))
        optimizer = variant.cls([{"params": [moving]}, {"params": [still], "lr": 0.0}], **kwargs)
        for _ in range(5):
            optimizer.zero_grad()
            (moving.square().sum() + still.square().sum()).backward()
            optimizer.step()
        assert (moving < 1).all()
        assert torch.equal(still, torch.ones(10))


def test_tensor_lr_step_by_step(variant: Variant) -> None:
    """Tensor and float learning rate agree after every step, followed with torch's TensorTracker."""
    case, tracker = TestCase(), common.TensorTracker(EXACT)
    for given in inputs_of(variant):
        kwargs = {**given.kwargs, "lr": 0.05}
        for lr in (0.05, torch.tensor(0.05)):
            params = weights(shapes=[(64, 64), (5,)])
            optimizer = variant.cls(params, **{**kwargs, "lr": lr})
            for step in range(1, 4):
                train(optimizer, params, [step])
                for param in params:
                    if isinstance(lr, float):
                        tracker.add(param)
                    else:
                        tracker.pop_check_set(param, case)
        assert tracker.all_popped()


def test_reloading_at_every_step_changes_nothing(variant: Variant) -> None:
    """A new optimizer per step, each loading the last one's state dict, walks the same path, for every input."""
    case, tracker = TestCase(), common.TensorTracker(EXACT)
    for given in inputs_of(variant):
        for reload in (False, True):
            params = weights(shapes=[(64, 64), (5,)])
            optimizer = variant.cls(params, **copy.deepcopy(given.kwargs))
            for step in range(1, 4):
                if reload:
                    successor = variant.cls(params, **copy.deepcopy(given.kwargs))
                    successor.load_state_dict(optimizer.state_dict())
                    optimizer = successor
                train(optimizer, params, [step])
                for param in params:
                    if reload:
                        tracker.pop_check_set(param, case)
                    else:
                        tracker.add(param)
        assert tracker.all_popped()


def test_param_groups_with_schedulers(variant: Variant) -> None:
    """Groups with rates of their own, under each scheduler, all go down; torch's test of groups with a scheduler."""
    for make in info(variant).scheduler_inputs:
        first, second = nn.Parameter(torch.full((10,), 2.0)), nn.Parameter(torch.full((10,), 2.0))
        optimizer = variant([{"params": [first]}, {"params": [second], "lr": 0.002}], lr=0.001)
        clocks = [one(optimizer) for one in make]
        for _ in range(20):
            optimizer.zero_grad()
            loss = first.square().sum() + second.square().sum()
            loss.backward()
            optimizer.step()
            for clock in clocks:
                clock.step(*((loss.detach(),) if isinstance(clock, ReduceLROnPlateau) else ()))
        assert (second < first).all()
        assert (first < 2).all()


def test_a_step_without_gradients_or_with_zeros_moves_nothing(variant: Variant) -> None:
    """With None no state appears; with zeros, and no decay, weights and momentum stay, and the step counts."""
    for given in inputs_of(variant):
        params = weights()
        optimizer = variant.cls(params, **{**given.kwargs, "weight_decay": 0.0})
        before = [param.detach().clone() for param in params]
        optimizer.step()
        assert not any(optimizer.state.get(param) for param in params)
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
        assert all(map(torch.equal, params, before))
        assert all(optimizer.state[param]["step"] == 1 for param in params)
        assert not any(optimizer.momentum(param).any() for param in params)


def test_state_is_there_after_a_step(variant: Variant) -> None:
    """Torch's test that no optimizer hides its state elsewhere."""
    for given in inputs_of(variant):
        params = weights()
        optimizer = variant.cls(params, **given.kwargs)
        train(optimizer, params, [1])
        saved = optimizer.state_dict()["state"]
        assert all(len(saved[position]) > 1 for position in range(len(params)))


@pytest.mark.parametrize(("here", "there"), list(itertools.product((False, True), repeat=2)))
def test_a_state_dict_goes_on_alike_with_names_and_without(variant: Variant, here: bool, there: bool) -> None:
    """From parameters with names or without to such or such, for every input: the same steps afterwards."""

    def listed(params: list[nn.Parameter], named: bool) -> list[Any]:
        return list(zip("abcd", params, strict=True)) if named else params

    for given in inputs_of(variant):
        params, twins = weights(), weights()
        optimizer = variant.cls(listed(params, here), **copy.deepcopy(given.kwargs))
        train(optimizer, params, [1, 2])
        for twin, param in zip(twins, params, strict=True):
            twin.data.copy_(param.data)
        twin = variant.cls(listed(twins, there), **copy.deepcopy(given.kwargs))
        twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(optimizer, params, [3, 4])
        train(twin, twins, [3, 4])
        assert all(map(torch.equal, params, twins))
        assert ("param_names" in twin.param_groups[0]) == (here or there)


def test_parameters_of_several_dtypes_in_one_group(variant: Variant) -> None:
    """Updated as in an optimizer over parameters of its dtype alone; to nearest, as noise depends on position."""
    settings = {"lr": 0.01, "rounding": "nearest"}
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    mixed = [weights(dtype, [(64, 64)])[0] for dtype in dtypes]
    alone = copy.deepcopy(mixed)
    train(variant(mixed, **settings), mixed, [1])
    for position, param in enumerate(alone):
        optimizer = variant([param], **settings)
        param.grad = mixed[position].grad
        optimizer.step()
        assert torch.equal(param, mixed[position])


def test_complex_parameters_are_refused_by_name(variant: Variant) -> None:
    """Torch's optimizers take them as pairs of reals; Lion's sign has no such meaning."""
    with pytest.raises(ValueError, match=r"shape \(3,\).*complex64"):
        variant([nn.Parameter(torch.zeros(3, dtype=torch.complex64))])
