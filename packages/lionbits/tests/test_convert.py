"""Conversion of state between 32, 8, 4 and 2 bits: what it changes, what it leaves alone, what comes back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lionbits import Lion, Lion4bit, Lion8bit, Lion32bit, PagedLion4bit, QLion, convert
from lionbits_reference import backend as reference
from lionbits_reference.spec import Format

from .family import FAMILY, Variant, assert_same, snapshot, train, weights

pytestmark = pytest.mark.filterwarnings("ignore:optim_bits=2:UserWarning")  # what 2 bits cost

NAMES = {32: ["float32"], 8: ["e3m4", "e0m7", "e4m3"], 4: ["e3m0", "e0m3", "e2m1"], 2: ["e0m1", "e1m0"]}


@st.composite
def forms(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of a group that decide in which form momentum is held."""
    bits = draw(st.sampled_from([32, 8, 4, 2]))
    form = {"optim_bits": bits, "state_format": draw(st.sampled_from(NAMES[bits]))}
    form["min_8bit_size"] = draw(st.sampled_from([1, 100, 4096]))
    form["block_wise"] = draw(st.booleans())
    if form["block_wise"] and bits < 32:
        form["block_size"] = draw(st.sampled_from([32, 64, 256]))
    return form


shapes = st.lists(
    st.one_of(
        st.just(()),
        st.tuples(st.integers(0, 200)),
        st.tuples(st.integers(0, 5), st.integers(1, 150)),
        st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 19)),
    ),
    min_size=1,
    max_size=3,
)


def _format_of(form: dict[str, Any], param: torch.Tensor) -> Format:
    """The rule of small tensors, written again: too few elements keep 32 bits."""
    small = param.numel() < max(form["min_8bit_size"], 32)
    return Format.of(32) if small else Format.of(**{key: form[key] for key in form if key != "min_8bit_size"})


@settings(max_examples=150, deadline=None, derandomize=True)
@given(shapes, forms(), forms(), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 2**64 - 1))
def test_any_form_becomes_any_other(
    shapes: Sequence[Sequence[int]], here: dict[str, Any], there: dict[str, Any], dtype: torch.dtype, seed: int
) -> None:
    """The momentum rounded to nearest once; in small tensors exactly; steps, seed and all beside it stay."""
    params = weights(dtype, shapes)
    kept = {"param_rounding": "compensated"} if dtype == torch.bfloat16 else {}
    source = Lion(params, lr=0.01, betas=(0.8, 0.9), percentile_clipping=50, seed=seed, **here, **kept)
    train(source, params, [1, 2])
    target = Lion(params, **there)
    saved = source.state_dict()
    before, ours = copy.deepcopy(saved), snapshot(target)
    converted = convert(saved, target)
    assert_same(saved, before)
    assert_same(snapshot(target), ours)

    target.load_state_dict(converted)
    group = target.param_groups[0]
    assert (group["lr"], group["betas"], group["seed"]) == (0.01, (0.8, 0.9), seed)
    assert {key: group[key] for key in there} == there
    for param in params:
        state = target.state[param]
        format, expected = _format_of(there, param), source.momentum(param)
        assert ("exp_avg" in state) != format.quantised
        if format != _format_of(here, param):
            expected = reference.decode(format, reference.encode(format, expected), param.shape)
        assert_same(target.momentum(param), expected)
        same = {key: value for key, value in state.items() if not key.startswith("exp_avg")}
        assert_same(same, {key: value for key, value in source.state[param].items() if not key.startswith("exp_avg")})
    train(target, params, [3])
    assert all(target.state[param]["step"] == 3 for param in params)


@pytest.mark.parametrize("source", FAMILY, ids=lambda v: v.name)
def test_every_variant_continues_from_every_other(source: Variant) -> None:
    """Load, train, save: paged and QLion included; what the class says about its form is what its groups say."""
    params = weights()
    optimizer = source(params, lr=0.01)
    train(optimizer, params, [1, 2])
    saved = copy.deepcopy(optimizer.state_dict())
    for goal in FAMILY:
        mine = copy.deepcopy(params)
        target = goal(mine)
        target.load_state_dict(convert(saved, target))
        form = {key: target.param_groups[0].get(key) for key in ("optim_bits", "use_4bit")}
        assert form == {"optim_bits": goal.bits, "use_4bit": goal.bits == 4 if goal.cls is QLion else None}
        train(target, mine, [3])
        assert all(bool(torch.isfinite(param).all()) for param in mine)
        copy.deepcopy(target).add_param_group({**target.param_groups[0], "params": weights(shapes=[(40, 40)])})


def test_narrow_state_widened_is_what_it_decodes_to() -> None:
    """32 -> 8 -> 32 holds the values of the codes, every bit."""
    params = weights()
    wide, narrow, again = Lion32bit(params), Lion8bit(params), Lion32bit(params)
    train(wide, params, [1, 2, 3])
    narrow.load_state_dict(convert(wide.state_dict(), narrow))
    again.load_state_dict(convert(narrow.state_dict(), again))
    for param in params:
        assert_same(again.state[param]["exp_avg"], narrow.momentum(param))
    assert not torch.equal(again.state[params[0]]["exp_avg"], wide.state[params[0]]["exp_avg"])


def _scales(format: Format, absmax: torch.Tensor) -> torch.Tensor:
    return absmax / torch.tensor(format.top)


@pytest.mark.parametrize("name", [name for bits in (8, 4, 2) for name in NAMES[bits]])
def test_every_scale_that_an_encoder_writes_comes_back(name: str) -> None:
    """scale = absmax/top gives (scale*top)/top = scale: all 2^23 significands. Not so for scales of other origin."""
    format = Format.of(1 + int(name[1]) + int(name[3]), name)
    absmax = (torch.arange(2**23, dtype=torch.int32) + (127 << 23)).view(torch.float32)
    scale = _scales(format, absmax)
    assert torch.equal(_scales(format, scale * format.top), scale)
    power_of_two = format.top in (1.0, 2.0, 128.0)
    assert torch.equal(_scales(format, absmax * format.top), absmax) == power_of_two


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.sampled_from([(bits, name) for bits in (8, 4, 2) for name in NAMES[bits]]),
    st.sampled_from([32, 64, None]),
    st.integers(1, 130),
    st.integers(0, 2**32 - 1),
    st.floats(-90, 120),
)
def test_widened_and_narrowed_again_is_the_same_where_blocks_have_a_top_code(
    form: tuple[int, str], block: int | None, columns: int, seed: int, power: float
) -> None:
    """8 -> 32 -> 8 (4, 2) is the identity on scales and codes: nearest finds each code's own value again."""
    bits, name = form
    format = Format.of(bits, name, block, block is not None)
    generator = torch.Generator().manual_seed(seed)
    momentum = torch.randn(7, columns, generator=generator) * 2.0**power
    state = reference.encode(format, momentum)  # nearest: the largest of a block gets the top code
    again = reference.encode(format, reference.decode(format, state, momentum.shape))
    assert_same(again, state)


def test_a_block_without_its_top_code_is_scaled_anew() -> None:
    """There the identity ends: e3m4's largest value becomes the top, and the others are rounded again."""
    format = Format.of(8)
    codes = torch.tensor([[0x7E, 0x7D] + [0] * 62], dtype=torch.uint8)
    state = {"exp_avg_codes": codes, "exp_avg_scale": torch.full((1, 1), 0.5)}
    again = reference.encode(format, reference.decode(format, state, (1, 64)))
    assert again["exp_avg_codes"][0, 0] == 0x7F
    assert again["exp_avg_scale"].item() != 0.5


def test_what_is_in_the_right_form_is_handed_on_untouched() -> None:
    """No rounding of what need not change, and no copy; converting a second time changes nothing."""
    params = weights()
    source, target = Lion8bit(params), Lion4bit(params)
    train(source, params, [1])
    saved = source.state_dict()
    same = convert(saved, source)
    assert_same(same, saved)
    assert same["state"][0]["exp_avg_codes"] is saved["state"][0]["exp_avg_codes"]
    once = convert(saved, target)
    assert once["state"][2]["exp_avg"] is saved["state"][2]["exp_avg"]
    assert_same(convert(once, target), once)


def test_groups_are_converted_each_by_its_own_settings() -> None:
    """Bits of the optimizer's group, rates of the checkpoint's; parameters without state have none afterwards."""
    params = weights(shapes=[(64, 64), (64, 128), (64, 96)])
    source = Lion8bit([{"params": params[:1], "lr": 0.5}, {"params": params[1:], "block_size": 64}])
    train(source, params[:2], [1])
    target = Lion4bit([{"params": params[:1]}, {"params": params[1:], "optim_bits": 32}])
    target.load_state_dict(convert(source.state_dict(), target))
    first, second = target.param_groups
    assert (first["lr"], first["optim_bits"], first["block_size"]) == (0.5, 4, 128)
    assert (second["optim_bits"], second["state_format"], second["block_size"]) == (32, "float32", None)
    assert_same(target.momentum(params[1]), source.momentum(params[1]))
    assert not target.state.get(params[2])


def test_notes_and_names_travel_along() -> None:
    """State under keys of its own, settings that are not lionbits' and names are copied as they are."""
    params = weights()
    source = Lion8bit(list(zip("abcd", params, strict=True)))
    train(source, params, [1])
    source.state["epoch"] = {"count": 3}  # type: ignore[index]
    source.param_groups[0]["initial_lr"] = 0.25
    target = PagedLion4bit(params)
    converted = convert(source.state_dict(), target)
    assert converted["state"]["epoch"] == {"count": 3}
    assert converted["param_groups"][0]["param_names"] == list("abcd")
    target.load_state_dict(converted)
    assert target.param_groups[0]["initial_lr"] == 0.25


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "no dict": (lambda saved: [saved], TypeError, "state_dict"),
    "other groups": (lambda saved: {**saved, "param_groups": saved["param_groups"] * 2}, ValueError, "number of"),
    "codes missing": (
        lambda saved: {**saved, "state": {0: {"step": 1}}}, ValueError, "parameter 0.*exp_avg_codes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("key", BAD)
def test_what_does_not_fit_for_another_reason_is_refused(key: str) -> None:
    change, kind, words = BAD[key]
    params = weights()
    source, target = Lion8bit(params), Lion4bit(params)
    train(source, params, [1])
    with pytest.raises(kind, match=words):
        convert(change(copy.deepcopy(source.state_dict())), target)


def test_an_optimizer_is_needed_as_codes_do_not_tell_shapes() -> None:
    params = weights()
    with pytest.raises(TypeError, match="optimizer="):
        convert(Lion8bit(params).state_dict(), torch.optim.SGD(params))  # type: ignore[arg-type]


def test_the_refusal_to_load_names_the_way() -> None:
    """Whoever loads 8-bit state into a 4-bit run reads what to call."""
    params = weights()
    source, target = Lion8bit(params), Lion4bit(params)
    train(source, params, [1])
    with pytest.raises(ValueError, match=r"lionbits\.convert\(state_dict, optimizer\)"):
        target.load_state_dict(source.state_dict())
