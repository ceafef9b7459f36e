"""Whose settings count when a checkpoint is loaded: a warning where the optimizer's go, and ``convert(keep=)``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

import lionbits
from lionbits import Lion, Lion4bit, Lion8bit, PagedLion8bit, QLion, convert

from .family import FAMILY, Variant, assert_same, gradient, snapshot, train, weights

#: Settings that are not the default, and that no schedule changes.
GIVEN: dict[str, Any] = {
    "min_8bit_size": 5000,
    "percentile_clipping": 50,
    "rounding": "stochastic",
    "cautious": "gradient",
    "grad_clip": 0.25,
    "param_rounding": "compensated",
    "master_bits": 24,
    "nonfinite": "propagate",
    "maximize": True,
    "seed": 3,
}

#: Those that a class of the family takes otherwise.
QLIONS = {"min_8bit_size": {"quant_threshold": 4999}, "cautious": {"cautious": True}}


def given(variant: Variant, name: str) -> dict[str, Any]:
    """The setting as an argument of the class."""
    return QLIONS.get(name, {name: GIVEN[name]}) if variant.cls is QLion else {name: GIVEN[name]}


def trained(make: Callable[..., Lion], dtype: torch.dtype, steps: Iterable[int], **settings: Any) -> Any:
    params = weights(dtype)
    optimizer = make(params, **settings)
    train(optimizer, params, steps)
    return params, optimizer


def continued(make: Callable[..., Lion], params: list[nn.Parameter], saved: Any, **settings: Any) -> Any:
    """A new optimizer over copies of the parameters, with the state dict loaded."""
    mine = copy.deepcopy(params)
    optimizer = make(mine, **settings)
    optimizer.load_state_dict(saved(optimizer) if callable(saved) else saved)
    return mine, optimizer


@pytest.mark.parametrize("name", GIVEN)
def test_a_setting_that_was_given_and_goes_is_named_once(variant: Variant, name: str) -> None:
    """With what was given, what the checkpoint has, and the way out; what was not given is not named."""
    params, optimizer = trained(variant, torch.float32, [1], lr=0.5, betas=(0.5, 0.5), weight_decay=0.5)
    saved = optimizer.state_dict()
    target = variant([{"params": params[:2]}, {"params": params[2:]}], **given(variant, name))
    saved["param_groups"] = [{**saved["param_groups"][0], "params": part} for part in ([0, 1], [2, 3])]
    before = target.param_groups[0][name]
    with pytest.warns(UserWarning, match="takes settings from the checkpoint") as caught:
        target.load_state_dict(saved)
    (warning,) = caught
    message = str(warning.message)
    assert f" {name}={before!r} ({target.param_groups[0][name]!r})" in message
    assert target.param_groups[0][name] == optimizer.param_groups[0][name] != before
    others = [other for other in (*GIVEN, "lr", "betas", "weight_decay") if other != name and f" {other}=" in message]
    assert not others
    assert "lionbits.convert(state_dict, optimizer, keep=" in message
    assert warning.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target.load_state_dict(saved)  # now they are the optimizer's


def test_a_warning_that_is_an_error_leaves_all_as_it_was(variant: Variant) -> None:
    params, optimizer = trained(variant, torch.float32, [1])
    target = variant(params, grad_clip=0.25)
    train(target, params, [2])
    before = snapshot(target)
    with pytest.raises(UserWarning, match=r"grad_clip=0\.25"):  # as all warnings of these tests
        target.load_state_dict(optimizer.state_dict())
    assert_same(snapshot(target), before)


def test_what_is_usual_is_not_warned_of(variant: Variant) -> None:
    """The same settings again; none given; rates and betas that a schedule has changed; a state dict of its own."""
    kept = {} if variant.cls is QLion else {"cautious": "mask"}
    usual: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "grad_clip": 0.5, "percentile_clipping": 50, **kept}
    params = weights()
    optimizer = variant(params, **usual)
    clocks = [ExponentialLR(optimizer, 0.5), OneCycleLR(optimizer, 0.1, 10)]  # which turns betas as well
    for step in (1, 2):
        train(optimizer, params, [step])
        for clock in clocks:
            clock.step()
    optimizer.param_groups[0]["weight_decay"] = 0.5
    saved = optimizer.state_dict()
    for settings in (usual, {}, {**usual, "lr": 0.3, "betas": (0.7, 0.8), "weight_decay": 0.0}):
        continued(variant, params, saved, **settings)
    optimizer.load_state_dict(saved)


def test_a_class_of_ones_own_has_defaults_of_its_own() -> None:
    """What a subclass gives by default nobody gave."""

    class Clipped(Lion8bit):
        def __init__(self, params: Any, grad_clip: float = 2.0, **settings: Any) -> None:
            super().__init__(params, grad_clip=grad_clip, **settings)

    params, optimizer = trained(Lion8bit, torch.float32, [1])
    continued(Clipped, params, optimizer.state_dict())
    with pytest.warns(UserWarning, match=r"grad_clip=3\.0 \(0\.0\)"):
        continued(Clipped, params, optimizer.state_dict(), grad_clip=3.0)


@pytest.mark.parametrize("name", [*GIVEN, "lr", "weight_decay", "betas"])
def test_a_setting_that_is_kept_is_the_optimizers(variant: Variant, name: str) -> None:
    """The others are the checkpoint's, the momentum stays in every bit, and nobody is warned."""
    rates = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.9)}
    params, optimizer = trained(variant, torch.bfloat16, [1, 2], lr=0.02, weight_decay=0.2)
    settings = {name: rates[name]} if name in rates else given(variant, name)
    twins, target = continued(variant, params, lambda o: convert(optimizer.state_dict(), o, keep=[name]), **settings)
    ours, theirs = target.param_groups[0], optimizer.param_groups[0]
    asked = variant(weights(), **settings).param_groups[0]
    assert ours[name] == asked[name]
    form = ("params", "min_8bit_size", "quant_threshold")
    same = {key: value for key, value in ours.items() if key not in (name, *form)}
    assert_same(same, {key: value for key, value in theirs.items() if key not in (name, *form)})
    for twin, param in zip(twins, params, strict=True):
        if name != "min_8bit_size":
            assert_same(target.momentum(twin), optimizer.momentum(param))
        assert target.state[twin]["step"] == 2
    train(target, twins, [3])


def test_all_settings_at_once(variant: Variant) -> None:
    """``optimizer.defaults`` names all: what is loaded is state alone."""
    params, optimizer = trained(variant, torch.bfloat16, [1, 2], lr=0.02, weight_decay=0.2)
    settings = {key: value for name in GIVEN for key, value in given(variant, name).items()}
    mine = copy.deepcopy(params)
    target = variant(mine, lr=0.3, betas=(0.5, 0.6), **settings)
    before = snapshot(target)["groups"]
    target.load_state_dict(convert(optimizer.state_dict(), target, keep=target.defaults))
    assert_same(snapshot(target)["groups"], before)
    train(target, mine, [3])


def rest_of(optimizer: Lion, param: nn.Parameter) -> torch.Tensor:
    found: torch.Tensor = optimizer.state[param]["param_residual"]
    return found


@pytest.mark.parametrize("master_bits", [32, 24])
def test_bfloat16_becomes_compensated_and_float32_again(variant: Variant, master_bits: int) -> None:
    """As if the run had been compensated from there on; then a float32 run goes on from the exact weights."""
    params, optimizer = trained(variant, torch.bfloat16, [1, 2], lr=0.01)
    new: dict[str, Any] = {"param_rounding": "compensated", "master_bits": master_bits}
    mine, target = continued(variant, params, lambda o: convert(optimizer.state_dict(), o, keep=list(new)), **new)
    optimizer.param_groups[0].update(new)  # under a running optimizer comes to the same
    for run in ((target, mine), (optimizer, params)):
        train(*run, [3, 4])
    assert_same(snapshot(target)["params"], snapshot(optimizer)["params"])
    assert_same(target.state_dict(), optimizer.state_dict())
    assert any(rest_of(target, param).any() for param in mine)

    whole = [lionbits.state.residual.joined(param.detach(), rest_of(target, param)) for param in mine]
    wide = [nn.Parameter(param.detach().float()) for param in mine]
    last = variant(wide)
    last.load_state_dict(target.state_dict())
    assert_same([param.detach() for param in wide], whole)
    train(last, wide, [5])


def test_what_compensation_kept_goes_where_it_has_no_use(variant: Variant) -> None:
    """From compensated to unbiased rounding: as where the setting is changed under a running optimizer."""
    params, optimizer = trained(variant, torch.bfloat16, [1, 2], param_rounding="compensated")
    saved = copy.deepcopy(optimizer.state_dict())
    new = {"param_rounding": "dithered"}
    mine, target = continued(variant, params, lambda o: convert(saved, o, keep=["param_rounding"]), **new)
    assert not any("param_residual" in state for state in target.state.values())
    optimizer.param_groups[0].update(new)
    for run in ((target, mine), (optimizer, params)):
        train(*run, [3])
    assert_same(snapshot(target)["params"], snapshot(optimizer)["params"])


@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16])
def test_the_rest_of_a_float32_parameter_stays_for_it(wide: torch.dtype) -> None:
    """It goes into the weights, whatever settings are kept."""
    params, optimizer = trained(Lion8bit, torch.bfloat16, [1, 2], param_rounding="compensated")
    mine = [nn.Parameter(param.detach().to(wide)) for param in params]
    target = Lion8bit(mine, param_rounding="compensated", grad_clip=0.5)
    target.load_state_dict(convert(optimizer.state_dict(), target, keep=target.defaults))
    whole = [lionbits.state.residual.joined(param.detach(), rest_of(optimizer, param)) for param in params]
    if wide == torch.float32:
        assert_same([param.detach() for param in mine], whole)
        return
    assert_same([rest_of(target, param) for param in mine], [rest_of(optimizer, param) for param in params])


def test_every_rest_changes_its_width_as_its_numbers_say() -> None:
    """All 65,536 of 16 bits, all 256 of 8: exact upwards, nearest downwards, and never another bfloat16 value."""
    narrow = torch.arange(-128, 128).to(torch.int8)
    wide = torch.arange(-(2**15), 2**15).to(torch.int16)
    resized = lionbits.state.residual.resized
    assert_same(resized(narrow, 32), (torch.arange(-128, 128) * 256).to(torch.int16))
    assert_same(resized(resized(narrow, 32), 24), narrow)
    expected = [min((number + 128) // 256, 127) for number in range(-(2**15), 2**15)]
    assert_same(resized(wide, 24), torch.tensor(expected).to(torch.int8))
    assert resized(wide, 32) is wide
    assert resized(narrow, 24) is narrow


@pytest.mark.parametrize("bits", [(32, 24), (24, 32)])
def test_master_bits_change(variant: Variant, bits: tuple[int, int]) -> None:
    params, optimizer = trained(variant, torch.bfloat16, [1, 2], param_rounding="compensated", master_bits=bits[0])
    new: dict[str, Any] = {"param_rounding": "compensated", "master_bits": bits[1]}
    saved = copy.deepcopy(optimizer.state_dict())
    mine, target = continued(variant, params, lambda o: convert(saved, o, keep=["master_bits"]), **new)
    for old, param in zip(params, mine, strict=True):
        assert_same(rest_of(target, param), lionbits.state.residual.resized(rest_of(optimizer, old), bits[1]))
    assert_same(saved, optimizer.state_dict())
    train(target, mine, [3])


def test_history_of_norms_begins_goes_on_and_goes(variant: Variant) -> None:
    """A kept percentile reads the history that is there; none is there where nothing was clipped."""
    params, optimizer = trained(variant, torch.float32, [1, 2], percentile_clipping=50)
    for percentile in (20, 100):
        mine, target = continued(
            variant, params, lambda o: convert(optimizer.state_dict(), o, keep=["percentile_clipping"]),
            percentile_clipping=percentile,
        )  # fmt: skip
        held = [state.get("grad_norms") for state in target.state.values()]
        there = [state["grad_norms"] for state in optimizer.state.values()]
        assert_same(held, there if percentile == 20 else [None] * len(there))
    begun, again = continued(
        variant, mine, lambda o: convert(target.state_dict(), o, keep=["percentile_clipping"]), percentile_clipping=1
    )
    train(again, begun, [3])
    for position, param in enumerate(begun):
        norms = again.state[param]["grad_norms"]
        assert_same(norms, norms[:1].expand(100))
        assert norms[0] == gradient(param, position, 3).double().norm().float()


def test_a_kept_rate_takes_the_start_of_its_schedule_along() -> None:
    """Else a schedule that begins anew would begin at the old one's."""
    params, optimizer = trained(Lion8bit, torch.float32, [], lr=0.5)
    ExponentialLR(optimizer, 0.5)
    train(optimizer, params, [1])
    assert optimizer.state_dict()["param_groups"][0]["initial_lr"] == 0.5
    _, fresh = continued(Lion8bit, params, lambda o: convert(optimizer.state_dict(), o, keep=["lr"]), lr=0.125)
    assert ExponentialLR(fresh, 0.5).base_lrs == [0.125]
    scheduled = Lion8bit(params, lr=0.125)
    clock = ExponentialLR(scheduled, 0.5)
    scheduled.load_state_dict(convert(optimizer.state_dict(), scheduled, keep=["lr"]))
    train(scheduled, params, [2])
    clock.step()
    assert (scheduled.param_groups[0]["initial_lr"], scheduled.param_groups[0]["lr"]) == (0.125, 0.0625)


def test_qlions_betas_and_the_order_they_stand_for_stay_together() -> None:
    params, optimizer = trained(QLion, torch.float32, [1])
    for keep in (["betas"], ["momentum_first"]):
        _, target = continued(
            QLion, params, lambda o: convert(optimizer.state_dict(), o, keep=keep), momentum_first=True  # noqa: B023
        )  # fmt: skip
        group = target.param_groups[0]
        assert (group["momentum_first"], group["betas"]) == (True, (0.9 * 0.99, 0.99))


def test_groups_keep_settings_each_of_its_own() -> None:
    """Bits, rates and rounding in one call, from 8 bits resident to 4 and 32 bits paged."""
    params, optimizer = trained(PagedLion8bit, torch.bfloat16, [1, 2])
    mine = copy.deepcopy(params)
    target = Lion4bit([{"params": mine[:1], "lr": 0.25}, {"params": mine[1:], "optim_bits": 32, "lr": 0.125}])
    saved = optimizer.state_dict()
    saved["param_groups"] = [{**saved["param_groups"][0], "params": part} for part in ([0], [1, 2, 3])]
    target.load_state_dict(convert(saved, target, keep=["lr"]))
    assert [group["lr"] for group in target.param_groups] == [0.25, 0.125]
    assert [group["optim_bits"] for group in target.param_groups] == [4, 32]
    assert_same(target.momentum(mine[1]), optimizer.momentum(params[1]))


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "a text": ("lr", TypeError, r"keep='lr' is not accepted: it must list names of settings. Pass keep=\["),
    "no list": (3, TypeError, "keep=3"),
    "no names": ([3], TypeError, "keep=3"),
    "misspelt": (["param_roundin"], ValueError, "keep='param_roundin'.*Did you mean 'param_rounding'"),
    "the optimizer's": (["is_paged"], ValueError, "keep='is_paged'.*Leave it out"),
    "QLion's": (["use_4bit"], ValueError, "keep='use_4bit' is not accepted: it is no setting"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_names_no_setting_is_refused(name: str) -> None:
    keep, kind, words = BAD[name]
    _, optimizer = trained(Lion8bit, torch.float32, [1])
    before = snapshot(optimizer)
    with pytest.raises(kind, match=words):
        convert(optimizer.state_dict(), optimizer, keep=keep)
    assert_same(snapshot(optimizer), before)


@pytest.mark.parametrize("variant", FAMILY[:4], ids=lambda v: v.name)
def test_state_that_a_kept_setting_does_not_accept_is_refused_by_name(variant: Variant) -> None:
    """Momentum that is not finite stays with the setting that left it."""
    params, optimizer = trained(variant, torch.float32, [1], nonfinite="propagate")
    params[0].grad.fill_(torch.inf)
    optimizer.step()
    target = variant(params)
    before = snapshot(target)
    with pytest.raises(ValueError, match=r"parameter 0 has exp_avg.*not finite, which only 'propagate' leaves"):
        target.load_state_dict(convert(optimizer.state_dict(), target, keep=["nonfinite"]))
    assert_same(snapshot(target), before)
