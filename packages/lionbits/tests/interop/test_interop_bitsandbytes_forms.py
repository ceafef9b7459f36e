"""State dicts of older bitsandbytes, and its codec, without the library.

``bitsandbytes-0.43.3.pt`` was made by bitsandbytes 0.43.3 on a CPU. Its step needs a GPU; so its ``init_state`` made
the state, its ``quantize_blockwise`` with blocks of 2,048 the codes, its ``dequantize_blockwise`` says what they mean,
and its ``state_dict`` gave them their form. With one scale for a tensor (``block_wise=False``) codes are the nearest in
its table. Norms and steps were filled in.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lionbits import Lion, Lion4bit, Lion8bit, Lion32bit, interop
from lionbits.checkpoint.recognise import WRAPPED
from lionbits.interop import dynamic_map

from ..family import assert_same, snapshot, weights

FIXTURE = Path(__file__).with_name("bitsandbytes-0.43.3.pt")


def old(form: str) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(FIXTURE, weights_only=True)
    found: dict[str, Any] = content[form]
    return found


def group(count: int = 1, **more: Any) -> dict[str, Any]:
    return {"lr": 1e-4, "betas": (0.9, 0.99), "eps": 0.0, "weight_decay": 0, "params": list(range(count)), **more}


def state_of(momentum: Tensor, block: int = 256, **more: Any) -> dict[str, Any]:
    """Codes of a momentum in blocks of any size, nearest by brute force: not with the code under test."""
    values = dynamic_map.table()
    blocks = nn.functional.pad(momentum.reshape(-1), (0, -momentum.numel() % block)).reshape(-1, block)
    absmax = blocks.abs().amax(dim=1)
    unscaled = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = (unscaled[..., None] - values).abs().argmin(dim=-1).to(torch.uint8)
    codes = codes.reshape(-1)[: momentum.numel()].reshape(momentum.shape)
    return {"step": 3, "state1": codes, "qmap1": values, "absmax1": absmax, **more}


@pytest.mark.parametrize("form", ["blocks", "one scale"])
def test_a_state_dict_of_0_43_is_read_exactly(form: str) -> None:
    """Flat, in blocks of 2,048 or with one scale, small tensors at 32 bits, and the history of percentile clipping."""
    content = old(form)
    params = [nn.Parameter(torch.zeros(m.shape)) for m in content["momentum"]]
    ours = Lion32bit(params, percentile_clipping=50)
    ours.load_state_dict(interop.from_bitsandbytes(content["optimizer"], ours))
    for key, (param, momentum) in enumerate(zip(params, content["momentum"], strict=True)):
        assert_same(ours.momentum(param), momentum)
        assert ours.state[param]["step"] == 7
        norms = content["optimizer"]["state"][key]["gnorm_vec"]
        assert torch.equal(ours.state[param]["grad_norms"], norms.sqrt())
    assert [ours.param_groups[0][name] for name in ("lr", "betas", "weight_decay")] == [3e-5, (0.95, 0.98), 0.5]


def test_wrapped_and_flat_are_one() -> None:
    content = old("blocks")
    flat = content["optimizer"]
    wrapped = copy.deepcopy(flat)
    for state in wrapped["state"].values():
        inner = {name: state.pop(name) for name in list(state) if name != "step"}
        state[WRAPPED] = inner
    params = [nn.Parameter(torch.zeros(m.shape)) for m in content["momentum"]]
    ours = Lion8bit(params)
    assert_same(interop.from_bitsandbytes(wrapped, ours), interop.from_bitsandbytes(flat, ours))


sizes = st.integers(1, 6000) | st.sampled_from([255, 256, 257, 2047, 2048, 2049, 4096])


@settings(max_examples=40, deadline=None)
@given(size=sizes, block=st.sampled_from([256, 2048]), seed=st.integers(0, 2**32 - 1))
def test_the_block_size_is_found_by_the_number_of_scales(size: int, block: int, seed: int) -> None:
    """Whatever the number of elements: where both sizes make as many blocks they decode alike."""
    generator = torch.Generator().manual_seed(seed)
    momentum = torch.randn(size, generator=generator) * 10.0 ** torch.randint(-6, 3, (size,), generator=generator)
    state = state_of(momentum, block)
    ours = Lion32bit([nn.Parameter(torch.zeros(size))])
    made = interop.from_bitsandbytes({"state": {0: state}, "param_groups": [group()]}, ours)
    scale = state["absmax1"].repeat_interleave(block)[:size]
    assert_same(made["state"][0]["exp_avg"], state["qmap1"][state["state1"].long()] * scale)


@settings(max_examples=60, deadline=None)
@given(size=sizes, seed=st.integers(0, 2**32 - 1), power=st.integers(-120, 120), twist=st.sampled_from(["", "+", "-"]))
def test_codes_written_are_the_nearest(size: int, seed: int, power: int, twist: str) -> None:
    """Each decodes within half the gap of the table around it, of its block's absmax; nothing else is nearer."""
    generator = torch.Generator().manual_seed(seed)
    momentum = torch.randn(size, generator=generator) * 2.0**power
    momentum = {"": momentum, "+": momentum.abs(), "-": -momentum.abs()}[twist]
    codes, absmax = dynamic_map.quantise(momentum)
    assert (codes.dtype, codes.shape, absmax.shape) == (torch.uint8, (size,), (-(-size // 256),))
    values = dynamic_map.table().double()
    scale = absmax.double().repeat_interleave(256)[:size, None]
    distance = (momentum.double()[:, None] - values * scale).abs()
    chosen = distance.gather(1, codes.long()[:, None])
    assert (chosen <= distance.amin(dim=1, keepdim=True) + 2.0**-22 * scale).all()
    decoded = dynamic_map.dequantise(codes, dynamic_map.table(), absmax, 256)
    assert_same(dynamic_map.quantise(decoded)[0], codes)


def test_what_has_no_momentum_has_codes_of_zero() -> None:
    for shape in ((0,), (3, 0), (), (300,)):
        codes, absmax = dynamic_map.quantise(torch.zeros(shape))
        assert codes.shape == shape
        assert not dynamic_map.dequantise(codes, dynamic_map.table(), absmax, 256).any()
    codes, absmax = dynamic_map.quantise(torch.full((256,), -torch.finfo(torch.float32).max))
    assert torch.isfinite(dynamic_map.dequantise(codes, dynamic_map.table(), absmax, 256)).all()


#: (ours, worst error of an element relative to the largest of its block, when it goes there or comes from there)
COARSEST = ((Lion32bit, 0.0), (Lion8bit, 2.0**-5), (Lion4bit, 2.0**-2))


@pytest.mark.parametrize(("cls", "own"), COARSEST, ids=["32", "8", "4"])
@pytest.mark.parametrize("shape", [(64, 64), (40, 300), (3, 7000), (70, 61)], ids=str)
def test_there_and_back_costs_no_more_than_the_coarser_format(
    cls: type[Lion], own: float, shape: tuple[int, int]
) -> None:
    """Ours to theirs to ours adds at most half a step of their table; theirs to ours to theirs likewise."""
    theirs_worst = 0.0140625 / 2  # half its widest gap
    generator = torch.Generator().manual_seed(5)
    momentum = torch.randn(shape, generator=generator)
    largest = momentum.abs().max()
    params = [nn.Parameter(torch.zeros(shape))]
    ours = cls(params)
    plain = {
        "state": {0: {"exp_avg": momentum}},
        "param_groups": [{"lr": 1.0, "betas": (0.9, 0.99), "weight_decay": 0, "params": [0]}],
    }
    ours.load_state_dict(interop.from_lion_pytorch(plain, ours))
    here = ours.momentum(params[0])
    assert (here - momentum).abs().max() <= own * largest

    there = interop.to_bitsandbytes(ours, 8)
    ours.load_state_dict(interop.from_bitsandbytes(there, ours))
    back = ours.momentum(params[0])
    assert (back - here).abs().max() <= (theirs_worst + own) * largest * 1.01

    again = interop.to_bitsandbytes(ours, 8)
    one, two = (interop.bitsandbytes.read(given).held[0].exp_avg() for given in (there, again))
    assert (one - two).abs().max() <= (theirs_worst + own) * largest * 1.01


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no momentum": ({"state1": ...}, {}, "parameter 0 lacks 'state1'"),
    "a shard's scales": ({"absmax1": torch.ones(7)}, {}, "7 scales for 4,096 codes; blocks of 256 make 16"),
    "no scales": ({"absmax1": ...}, {}, "lacks 'absmax1'"),
    "no table": ({"qmap1": ...}, {}, "lacks 'qmap1'"),
    "a table of 16": ({"qmap1": torch.ones(16)}, {}, r"qmap1 of shape \(16,\)"),
    "cast codes": ({"state1": torch.zeros(64, 64)}, {}, "float32 beside qmap1"),
    "cast momentum": ({"state1": torch.zeros(64, 64).bfloat16(), "qmap1": ...}, {}, "state1 of torch.bfloat16"),
    "infinite scale": ({"absmax1": torch.full((16,), torch.inf)}, {}, "not finite in"),
    "no step": ({"step": ...}, {}, "has no 'step'"),
    "a negative step": ({"step": -2}, {}, "step=-2"),
    "two moments": ({"state2": torch.zeros(64, 64)}, {}, "Adam"),
    "a list": ({"state1": [1]}, {}, r"state1=\[1\]"),
    "another shape": ({"state1": torch.zeros(32, 128, dtype=torch.uint8)}, {}, r"\(32, 128\), .* \(64, 64\)"),
    "wrapped nonsense": ({WRAPPED: 5}, {}, "of type int"),
    "no lr": ({}, {"lr": ...}, "lacks lr"),
    "a bad lr": ({}, {"lr": -1.0}, "lr=-1.0"),
    "eps": ({}, {"eps": 1e-8}, "eps=1e-08"),
    "SGD": ({}, {"betas": (0.9, 0)}, "SGD"),
    "more parameters": ({}, {"params": [0, 1]}, r"\[1\] parameters, the state dict's \[2\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_state_dicts_are_refused_and_nothing_changes(case: str) -> None:
    in_state, in_group, words = BAD[case]
    state, settings_ = state_of(torch.randn(64, 64)), group()
    for target, changes in ((state, in_state), (settings_, in_group)):
        target.update({name: value for name, value in changes.items() if value is not ...})
        for name in [name for name, value in changes.items() if value is ...]:
            del target[name]
    given_ = {"state": {0: state}, "param_groups": [settings_]}
    held = copy.deepcopy(given_)
    ours = Lion8bit(weights(shapes=[(64, 64)]))
    before = snapshot(ours)
    with pytest.raises((TypeError, ValueError), match=words):
        interop.from_bitsandbytes(given_, ours)
    assert_same(snapshot(ours), before)
    assert_same(given_, held)


@pytest.mark.parametrize("given_", [None, [], {}, {"state": {}}, {"state": [], "param_groups": []}], ids=repr)
def test_what_is_no_state_dict_is_refused(given_: Any) -> None:
    for read in (interop.from_bitsandbytes, interop.from_qlion, interop.from_lion_pytorch, interop.from_flashlion):
        with pytest.raises((TypeError, ValueError), match="state"):
            read(given_, Lion8bit(weights()))
    assert interop.recognise(given_) is None


def test_written_on_and_optim_bits_are_checked() -> None:
    ours = Lion8bit(weights())
    with pytest.raises(ValueError, match="written_on='mps'"):
        interop.from_bitsandbytes({"state": {}, "param_groups": [group(4)]}, ours, written_on="mps")
    with pytest.raises(ValueError, match="optim_bits=4"):
        interop.to_bitsandbytes(ours, 4)
