"""Parameters whose rows are shorter than 32: one row of all elements, so that LoRA and convolutions have codes too."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lionbits
from lionbits import Lion, Lion4bit, Lion8bit, interop
from lionbits_reference.spec import Format

from .family import assert_same, gradient, train, weights

Shapes = list[tuple[int, ...]]

#: Shapes of one layer, and what bitsandbytes' Lion8bit holds of it: a byte for each element, a float32 absmax for each
#: 256, a table of 256 float32 for each parameter.
LAYERS: dict[str, Shapes] = {
    "LoRA r=8, d=3072": [(8, 3072), (3072, 8)],
    "LoRA r=16, d=1280": [(16, 1280), (1280, 16)],
    "depthwise 1536x1x5x5": [(1536, 1, 5, 5)],
    "LoRA r=32, d=1280": [(32, 1280), (1280, 32)],
    "LoRA r=4, d=4096 and 11008": [(4, 4096), (11008, 4), (4, 11008), (4096, 4)],
    "depthwise 96x1x7x7": [(96, 1, 7, 7)],
    "depthwise 960x1x3x3": [(960, 1, 3, 3)],
    "first convolution of 7x7x3, and of 3x3x3": [(64, 3, 7, 7), (512, 3, 3, 3)],
    "points 100000x3": [(100_000, 3)],
}


def bytes_per_parameter(optimizer_class: type[Lion], shapes: Shapes) -> float:
    """What the state really takes, step counts apart."""
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = optimizer_class(params, lr=1e-3)
    optimizer.init_state()
    return state_bytes(optimizer) / sum(param.numel() for param in params)


def state_bytes(optimizer: Lion) -> int:
    return sum(value.nbytes for state in optimizer.state.values() for key, value in state.items() if key != "step")


@pytest.mark.parametrize("layer", LAYERS)
def test_bytes_per_parameter(layer: str) -> None:
    """8 bits take at most 1.10 bytes for each element, 4 bits 0.60, whatever the shape."""
    assert 1.0 < bytes_per_parameter(Lion8bit, LAYERS[layer]) <= 1.10
    assert 0.5 < bytes_per_parameter(Lion4bit, LAYERS[layer]) <= 0.60


@pytest.mark.parametrize("shape", [(3072, 8), (1536, 1, 5, 5), (1280, 16)])
def test_blocks_are_full(shape: tuple[int, ...]) -> None:
    """With whole blocks, and nothing else, the figures are those of a large matrix."""
    assert bytes_per_parameter(Lion8bit, [shape]) == 1 + 4 / 256
    assert bytes_per_parameter(Lion4bit, [shape]) == 0.5 + 4 / 128


ORDERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "row-major": torch.Tensor.contiguous,
    "reversed": lambda t: t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim()))),
    "spaced": lambda t: torch.stack((t, t), -1)[..., 0],
}


@pytest.mark.parametrize("shape", [(129, 7), (70, 16), (64, 3, 3, 3), (40, 1, 5, 5)])
@pytest.mark.parametrize(
    "settings", [{"optim_bits": 8}, {"optim_bits": 4, "cautious": "mask", "block_size": 32}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_trains_as_a_vector_of_its_elements(
    shape: tuple[int, ...], settings: dict[str, Any], dtype: torch.dtype
) -> None:
    """Elements count in row-major order whatever the strides of parameter and gradient, rounding noise included."""
    rounding = {"param_rounding": "dithered"} if dtype == torch.bfloat16 else {}
    options = {"lr": 0.01, "min_8bit_size": 1, **settings, **rounding}
    (start,) = weights(dtype, [shape])
    flat = nn.Parameter(start.detach().flatten().clone())
    vector = Lion([flat], **options)
    for step in range(1, 4):
        flat.grad = gradient(start, 0, step).flatten()
        vector.step()
    for of_param, of_grad in itertools.product(ORDERS.values(), repeat=2):
        param = nn.Parameter(of_param(start.detach().clone()))
        optimizer = Lion([param], **options)
        for step in range(1, 4):
            param.grad = of_grad(gradient(param, 0, step))
            optimizer.step()
        assert torch.equal(param.flatten(), flat)
        assert torch.equal(optimizer.momentum(param).flatten(), vector.momentum(flat))
        assert torch.equal(optimizer.state[param]["exp_avg_scale"], vector.state[flat]["exp_avg_scale"])


def test_setting_what_was_read_changes_no_bit() -> None:
    params = weights(shapes=[(300, 7), (129, 1, 5, 5)])
    optimizer = Lion4bit(params, min_8bit_size=1)
    train(optimizer, params, [1, 2])
    before = {param: {key: value.clone() for key, value in optimizer.state[param].items()} for param in params}
    for param in params:
        optimizer.set_momentum(param, optimizer.momentum(param))
        assert_same(optimizer.state[param], before[param])


def test_blocks_are_those_of_bitsandbytes() -> None:
    """Momentum that fills bitsandbytes' flat blocks fills ours: each scale is that of one absmax of theirs."""
    (param,) = weights(shapes=[(512, 8)])
    wide = Lion([param])
    train(wide, [param], [1, 2])
    theirs = interop.to_bitsandbytes(wide, 8)
    held = theirs["state"][0]["__bnb_optimizer_quant_state__"]
    narrow = Lion8bit([param])
    narrow.load_state_dict(interop.from_bitsandbytes(theirs, narrow))
    scales = narrow.state[param]["exp_avg_scale"]
    assert scales.shape == (1, held["absmax1"].numel()) == (1, 16)
    blocks = held["qmap1"][held["state1"].flatten().int()].view(16, 256) * held["absmax1"][:, None]
    assert torch.equal(scales[0], blocks.abs().amax(1) / Format.of(8).top)


def told(build: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build()
    return [str(each.message) for each in caught if "fewer bits were asked for" in str(each.message)]


def test_a_tenth_at_32_bits_is_told_once() -> None:
    """Beyond a tenth of all elements that learn; not where 32 bits were asked for, nor at a tenth."""
    shapes = [(256, 140), (50, 64), (56, 12, 1)]  # 35,840 elements with codes, 3,200 and 672 without
    named = [(f"layer{i}", param) for i, param in enumerate(weights(shapes=[*shapes, (112,)]))]
    (message,) = told(lambda: Lion8bit(named))
    assert "3,984 of 39,824 elements (10%)" in message
    assert "3 parameter(s) (layer1, layer2, layer3)" in message
    assert not told(lambda: Lion8bit(named[:3]))
    assert not told(lambda: Lion8bit(named, min_8bit_size=100))
    assert not told(lambda: Lion(named))
    assert not told(lambda: Lion8bit(named, overrides={"layer[12]": {"optim_bits": 32}}))
    assert len(told(lambda: Lion8bit([{"params": named[:1]}, {"params": named[1:]}]))) == 1
    for _, param in named[1:]:
        param.requires_grad_(False)
    assert not told(lambda: Lion8bit(named))


def test_state_of_version_1_is_refused_by_number() -> None:
    """In which short rows had float32 momentum."""
    params = weights(shapes=[(1024, 8)])
    optimizer = lionbits.Lion8bit(params)
    train(optimizer, params, [1])
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lionbits_version"] = 1
    with pytest.raises(ValueError, match=r"'lionbits_version'\]=1: this lionbits reads version 3"):
        Lion8bit(params).load_state_dict(saved)


def _trained(shape: tuple[int, ...], bits: int) -> tuple[torch.nn.Parameter, Lion]:
    generator = torch.Generator().manual_seed(3)
    param = torch.nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = Lion([param], optim_bits=bits, min_8bit_size=32)
    for _ in range(3):
        param.grad = torch.randn(shape, generator=generator)
        optimizer.step()
    return param, optimizer


@pytest.mark.filterwarnings("ignore:optim_bits=2 is for research")
@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("shape", [(401,), (103, 7), (37, 1, 5, 5), (64, 8), (40, 40)], ids=str)
def test_state_dict_holds_codes_that_shards_can_cut(shape: tuple[int, ...], bits: int) -> None:
    """Codes of a parameter that is one row have its first dimension; in place or not, what is loaded counts."""
    param, optimizer = _trained(shape, bits)
    saved = optimizer.state_dict()
    assert saved["state"][0]["exp_avg_codes"].shape[0] == shape[0]

    twin = torch.nn.Parameter(param.detach().clone())
    other = Lion([twin], optim_bits=bits, min_8bit_size=32)
    other.init_state()
    for key, value in other.state_dict()["state"][0].items():  # as torch.distributed.checkpoint.load does
        value.copy_(saved["state"][0][key])
    assert torch.equal(other.momentum(twin), optimizer.momentum(param))

    third = Lion([torch.nn.Parameter(param.detach().clone())], optim_bits=bits, min_8bit_size=32)
    third.load_state_dict(saved)
    for one in (optimizer, other, third):
        one.param_groups[0]["params"][0].grad = torch.full(shape, 0.5)
        one.step()
    values = [one.param_groups[0]["params"][0] for one in (optimizer, other, third)]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


def test_a_byte_that_is_no_code_is_refused() -> None:
    param, optimizer = _trained((401,), 4)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["exp_avg_codes"][7] = 16
    before = optimizer.momentum(param)
    with pytest.raises(ValueError, match=r"parameter 0: exp_avg_codes has 16, which is no code of 4 bits"):
        optimizer.load_state_dict(saved)
    assert torch.equal(optimizer.momentum(param), before)


def test_a_snapshot_does_not_undo_later_steps() -> None:
    """What a state dict was given before a step is written back once."""
    param, optimizer = _trained((401,), 4)
    _, straight = _trained((401,), 4)
    optimizer.state_dict()
    for one in (optimizer, straight):
        for _ in range(2):
            one.param_groups[0]["params"][0].grad = torch.full((401,), 0.5)
            one.step()
    assert torch.equal(optimizer.momentum(param), straight.momentum(straight.param_groups[0]["params"][0]))
