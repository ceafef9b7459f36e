"""``set_momentum``: the inverse of ``momentum``, in every format, resident and paged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lionbits
from lionbits import Lion, Lion8bit
from lionbits_conformance import strategies
from lionbits_reference import backend as reference
from lionbits_reference.spec import Format

from .family import Variant, assert_same, snapshot, train, weights
from .movers import moving

pytestmark = pytest.mark.filterwarnings("ignore:optim_bits=2 is for research")


def arguments(format: Format) -> dict[str, Any]:
    """The settings that give a parameter this format."""
    if not format.quantised:
        return {"optim_bits": 32}
    block = {} if format.tensor_wise else {"block_size": format.block_size}
    form = {"optim_bits": format.bits, "state_format": format.name, "block_wise": not format.tensor_wise}
    return {**form, **block, "min_8bit_size": 1}


def optimizer_over(params: list[nn.Parameter], format: Format, **more: Any) -> Lion:
    return Lion(params, lr=1e-3, **arguments(format), **more)


SHAPES = st.sampled_from([(64, 64), (7, 61), (3, 400), (1000,), (5, 3, 11), (2, 33)])


@settings(deadline=None)
@given(strategies.formats(), SHAPES, st.sampled_from(["dithered", "stochastic", "nearest"]), st.integers(1, 4))
def test_what_was_read_changes_no_bit(format: Format, shape: tuple[int, ...], rounding: str, steps: int) -> None:
    """set(get()) is the identity on state and on the steps that follow."""
    params = weights(shapes=[shape])
    optimizer = optimizer_over(params, format, rounding=rounding)
    train(optimizer, params, range(steps))
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.set_momentum(params[0], optimizer.momentum(params[0]))
    assert_same(optimizer.state_dict(), before)


@settings(deadline=None)
@given(strategies.formats(), SHAPES, st.integers(0, 2**31))
def test_other_numbers_are_rounded_to_nearest(format: Format, shape: tuple[int, ...], seed: int) -> None:
    """The state is what the reference encodes, whatever was there; and a second time changes nothing."""
    params = weights(shapes=[shape])
    wanted = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10 ** (seed % 7 - 3)
    optimizer = optimizer_over(params, format)
    train(optimizer, params, range(seed % 2))
    optimizer.set_momentum(params[0], wanted)
    state = optimizer.state[params[0]]
    assert state["step"].item() == seed % 2
    now = {key: value.clone() for key, value in state.items() if key != "step"}
    assert_same(now, reference.encode(format, wanted))
    optimizer.set_momentum(params[0], optimizer.momentum(params[0]))
    assert_same({key: state[key] for key in now}, now)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_blocks_that_hold_their_numbers_stay(bits: int) -> None:
    """Also a block without its top code, which a fresh encoding would scale anew."""
    params = weights(shapes=[(4, 1024)])
    format = Format.of(bits, None, 256, True)
    optimizer = optimizer_over(params, format)
    train(optimizer, params, range(1))
    state = optimizer.state[params[0]]
    state["exp_avg_codes"][1].zero_()
    if bits == 8:
        state["exp_avg_codes"][1] = torch.arange(1024).remainder(7).to(torch.uint8)
    wanted, before = optimizer.momentum(params[0]), copy.deepcopy(state)
    wanted[0, 300] = 5.0
    assert bits != 8 or not torch.equal(reference.encode(format, wanted)["exp_avg_scale"][1], state["exp_avg_scale"][1])
    optimizer.set_momentum(params[0], wanted)
    differs = state["exp_avg_scale"] != before["exp_avg_scale"]
    assert differs.nonzero().tolist() == [[0, 1]]
    width = 256 * bits // 8
    now, then = (held["exp_avg_codes"].clone() for held in (state, before))
    now[0, width : 2 * width] = then[0, width : 2 * width] = 0
    assert torch.equal(now, then)


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_another_parameter_with_full_blocks_gets_the_same_bits(bits: int) -> None:
    """Nearest rounding leaves each block its top code; so another parameter's state is the same, too."""
    first, second = weights(shapes=[(64, 300)]), weights(shapes=[(64, 300)])
    one, other = (Lion(params, optim_bits=bits, rounding="nearest") for params in (first, second))
    train(one, first, range(5))
    other.set_momentum(second[0], one.momentum(first[0]))
    there = other.state[second[0]]
    assert_same({**there, "step": 0}, {**one.state[first[0]], "step": 0})


def test_every_variant_goes_on_from_it(variant: Variant) -> None:
    """A run whose momentum was set, before its first step, is one whose state was loaded."""
    loaded, held = weights(), weights()
    wanted = [torch.randn_like(param, dtype=torch.float32) for param in held]
    one, other = variant(loaded), variant(held)
    one.init_state()
    state_dict = copy.deepcopy(one.state_dict())
    for i, (group, momentum) in enumerate(zip(one.param_groups * len(held), wanted, strict=True)):
        plan_format = lionbits.settings.plan(group, held[i], torch.float32).format
        state_dict["state"][i].update(reference.encode(plan_format, momentum))
    one.load_state_dict(state_dict)
    for param, momentum in zip(held, wanted, strict=True):
        other.set_momentum(param, momentum)
    for optimizer, params in ((one, loaded), (other, held)):
        train(optimizer, params, range(3))
    assert_same([loaded, one.state_dict()], [held, other.state_dict()])


@pytest.mark.parametrize(("compute", "budget"), [("device", 0), ("device", 9000), ("device", None), ("host", None)])
def test_state_that_moves(compute: str, budget: int | None) -> None:
    """Between steps; on the host, and on the device."""
    results = []
    for paged in (False, True):
        params = weights()
        optimizer = Lion8bit(params, min_8bit_size=100)
        if paged:
            more = {"paged_compute": compute, "backend": "reference", "optim_bits": 8, "min_8bit_size": 100}
            optimizer = moving(params, 1 << 12, budget, **more)  # type: ignore[assignment]
        train(optimizer, params, range(2))
        for param in params:
            optimizer.set_momentum(param, optimizer.momentum(param) * 2)
        train(optimizer, params, range(2, 4))
        results.append([params, [optimizer.momentum(param) for param in params]])
    assert_same(*results)


def test_state_stays_where_it_is() -> None:
    """Its tensors are filled in place, as a captured step reads them; and other parameters get no state."""
    params = weights()
    optimizer = Lion8bit(params)
    optimizer.set_momentum(params[0], torch.ones(64, 64))
    assert list(optimizer.state) == [params[0]]
    held = dict(optimizer.state[params[0]])
    optimizer.set_momentum(params[0], torch.full((64, 64), 3.0))
    assert all(optimizer.state[params[0]][key] is value for key, value in held.items())


@pytest.mark.parametrize(
    ("momentum", "error", "message"),
    [
        (None, TypeError, "momentum=None"),
        (torch.ones(64, 64, dtype=torch.float64), TypeError, "torch.float64"),
        (torch.ones(64, 64).to_sparse(), TypeError, "sparse"),
        (torch.ones(64, 64, device="meta"), TypeError, "meta"),
        (torch.ones(64, 65), ValueError, r"momentum=\(64, 65\) .* shape \(64, 64\)"),
        (torch.ones(64 * 64), ValueError, r"momentum=\(4096,\)"),
        (torch.full((64, 64), torch.nan), ValueError, "4096 of its values are not finite"),
        (torch.full((64, 64), -torch.inf), ValueError, "not finite"),
    ],
)
@pytest.mark.parametrize("steps", [0, 1])
def test_what_is_not_accepted(steps: int, momentum: Any, error: type[Exception], message: str) -> None:
    """And changes nothing."""
    params = weights()
    optimizer = Lion8bit(params)
    train(optimizer, params, range(steps))
    before = snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.set_momentum(params[0], momentum)
    assert_same(snapshot(optimizer), before)


def test_whose_momentum() -> None:
    params = weights()
    optimizer = Lion8bit(params)
    with pytest.raises(ValueError, match="not among this optimizer's parameters"):
        optimizer.set_momentum(nn.Parameter(torch.ones(3)), torch.ones(3))
    with pytest.raises(TypeError, match="param='weight'"):
        optimizer.set_momentum("weight", torch.ones(3))  # type: ignore[arg-type]
    train(optimizer, params, range(1))
    optimizer.param_groups[0].update(state_format="e2m5")
    before = copy.deepcopy(optimizer.state[params[0]])
    with pytest.raises(ValueError, match="state_format='e2m5' is not accepted"):
        optimizer.set_momentum(params[0], torch.ones(64, 64))
    assert_same(optimizer.state[params[0]], before)


def test_a_parameter_of_another_length() -> None:
    """Densify and prune: rows of the old momentum, zeros for new rows; the run goes on, and the old state is gone."""
    old = nn.Parameter(torch.randn(200, 45, generator=torch.Generator().manual_seed(0)))
    optimizer = Lion8bit([{"params": [old], "name": "features"}], lr=1e-3)
    train(optimizer, [old], range(3))
    kept = torch.arange(200) % 3 > 0
    momentum = torch.cat([optimizer.momentum(old)[kept], torch.zeros(7, 45)])
    new = nn.Parameter(torch.cat([old.detach()[kept], torch.ones(7, 45)]))
    del optimizer.state[old]
    optimizer.param_groups[0]["params"] = [new]
    optimizer.set_momentum(new, momentum)
    assert torch.equal(optimizer.momentum(new), momentum)  # rows are whole blocks: not rounded again
    train(optimizer, [new], range(2))
    assert list(optimizer.state) == [new]
    assert optimizer.momentum(new)[-1].abs().sum() > 0
