"""What is refused is refused at any step, also where the one before it went well."""

from __future__ import annotations

import copy
from collections import defaultdict
from types import ModuleType

import pytest
import torch
from torch import nn

import lionbits_reference
from lionbits import Lion, settings
from lionbits.checkpoint import form
from lionbits.step import cache

from .differential import DifferentialRun, Event, setting, setting_of_one, swap_data
from .family import assert_same, snapshot, train, weights


def _sparse(param: nn.Parameter) -> None:
    param.grad = torch.sparse_coo_tensor([[0], [0]], [1.0], tuple(param.shape), check_invariants=True)


REFUSED: dict[str, tuple[Event, type[Exception], str]] = {
    "sparse": (lambda optimizer, params: _sparse(params[1]), RuntimeError, "sparse"),
    "lr": (setting(lr=-1.0), ValueError, "lr=-1"),
    "lr of True": (setting(lr=True), TypeError, "lr=True"),
    "weight_decay": (setting(weight_decay=-1.0), ValueError, "weight_decay"),
    "maximize": (setting(maximize=1), TypeError, "maximize=1"),
    "betas": (setting(betas=(2.0, 0.9)), ValueError, "betas"),
    "no betas": (setting(betas=None), TypeError, "betas"),
    "percentile_clipping": (setting(percentile_clipping=100.0), TypeError, "percentile_clipping"),
    "bits": (setting(optim_bits=4, state_format=None), ValueError, "does not fit"),
    "shape": (lambda optimizer, params: swap_data(params[1], params[1].data.view(32, 128)), ValueError, "shape"),
    "state": (lambda optimizer, params: optimizer.state[params[1]].pop("exp_avg_codes"), ValueError, "does not fit"),
}


@pytest.mark.parametrize(("event", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_refused_at_any_step(
    address_caching: ModuleType, event: Event, error: type[Exception], message: str
) -> None:
    pair = DifferentialRun(address_caching, "8")
    pair.step(2)
    for optimizer, params in pair.params.items():
        event(optimizer, params)
        before = snapshot(optimizer)
        for _ in range(2):
            with pytest.raises(error, match=message):
                optimizer.step()
        assert_same(snapshot(optimizer), before)


@pytest.mark.parametrize("key", [*settings.NAMES])
def test_a_setting_that_is_gone_is_missed(address_caching: ModuleType, key: str) -> None:
    pair = DifferentialRun(address_caching, "8")
    pair.step(2)
    for optimizer, params in pair.params.items():
        del optimizer.param_groups[1][key]
        before = snapshot(optimizer)
        with pytest.raises(ValueError, match=f"a parameter group lacks {key}"):
            optimizer.step()
        assert_same(snapshot(optimizer), before)
        saved = copy.deepcopy(optimizer.state_dict())
        if key in form.FORMAT_KEYS:
            with pytest.raises(ValueError, match=f"a parameter group lacks {key}"):
                optimizer.load_state_dict(saved)
        if key in settings._PLANNED:
            assert f"lacks {key}" in repr(optimizer)
            with pytest.raises(ValueError, match=f"a parameter group lacks {key}"):
                optimizer.momentum(params[1])


def test_a_list_of_parameters_that_is_gone_is_missed(address_caching: ModuleType) -> None:
    pair = DifferentialRun(address_caching, "8")
    pair.step(2)
    for optimizer in pair.params:
        del optimizer.param_groups[1]["params"]
        with pytest.raises(ValueError, match="a parameter group lacks 'params'"):
            optimizer.step()


def test_a_backend_may_be_put_in_another_place(address_caching: ModuleType) -> None:
    pair = DifferentialRun(address_caching, "8")
    pair.step(2)
    calls = len(address_caching.calls)
    pair.subject._backend = lionbits_reference
    pair.step(2)
    assert len(address_caching.calls) == calls


def test_a_tensor_learning_rate_is_read_at_every_step(address_caching: ModuleType) -> None:
    pair = DifferentialRun(address_caching, "8", lr=torch.tensor(0.01))
    pair.step(2)
    pair.subject.param_groups[0]["lr"].fill_(0.1)  # the twin's, too: groups share the default
    pair.step(2)
    pair.subject.param_groups[0]["lr"].fill_(-1.0)
    with pytest.raises(ValueError, match="lr=-1"):
        pair.step()


def test_a_backend_that_fails_is_not_built_upon(address_caching: ModuleType) -> None:
    """After an exception from within a backend the launch groups are made anew, from the counts that users see."""
    pair = DifferentialRun(address_caching, "8")
    pair.both(setting_of_one(betas=(0.5, 0.9)))  # a second launch group whose noise depends on its count
    pair.step(2)

    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    kept, address_caching.step = address_caching.step, fail
    with pytest.raises(RuntimeError, match="luck"):
        pair.subject.step()
    address_caching.step = kept
    pair.twin.state = copy.deepcopy(pair.twin.state)
    for state in pair.twin.state.values():
        state["step"] += 1
    pair.twin.state = defaultdict(dict, zip(pair.params[pair.twin], pair.twin.state.values(), strict=True))
    assert all(param.grad is not None for param in pair.params[pair.subject])
    pair.step(2)


def test_a_capture_needs_a_step_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is uploaded for a captured step would be uploaded again at every replay, counts among it."""
    params = weights()
    optimizer = Lion(params)
    monkeypatch.setattr(cache, "capturing", lambda device: True)
    with pytest.raises(RuntimeError, match="Take a step"):
        train(optimizer, params, (1,))
    assert not optimizer.state
