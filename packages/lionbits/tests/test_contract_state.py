"""What torch.optim promises about copies and state dicts, for every variant: a copy continues bit for bit."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion

from .family import Variant, assert_same, snapshot, train, weights

#: Parameters and settings under which a state dict has to come back unharmed.
DTYPES = {
    "float32": (torch.float32, {}),
    "float16": (torch.float16, {}),
    "bfloat16": (torch.bfloat16, {}),
    "bfloat16-stochastic": (torch.bfloat16, {"param_rounding": "stochastic"}),
    "bfloat16-compensated": (torch.bfloat16, {"param_rounding": "compensated"}),
    "bfloat16-compensated-24": (torch.bfloat16, {"param_rounding": "compensated", "master_bits": 24}),
}

#: Settings that are not torch's: an older version of the library may not have written them.
NEWER = (
    *("cautious", "grad_clip", "param_rounding", "master_bits", "nonfinite", "maximize", "rounding", "block_wise"),
    *("percentile_clipping", "min_8bit_size", "state_format", "block_size", "optim_bits", "seed"),
)


def copied(pair: tuple[list[nn.Parameter], Lion]) -> tuple[list[nn.Parameter], Lion]:
    return copy.deepcopy(pair)


def pickled(pair: tuple[list[nn.Parameter], Lion]) -> tuple[list[nn.Parameter], Lion]:
    twin: tuple[list[nn.Parameter], Lion] = pickle.loads(pickle.dumps(pair))
    return twin


def saved_whole(pair: tuple[list[nn.Parameter], Lion]) -> tuple[list[nn.Parameter], Lion]:
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    twin: tuple[list[nn.Parameter], Lion] = torch.load(file, weights_only=False)
    return twin


def through_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Save with torch.save and load without running any code from the file."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("duplicate", [copied, pickled, saved_whole])
@pytest.mark.parametrize("steps", [0, 2], ids=["fresh", "running"])
def test_a_copy_steps_as_the_original(
    variant: Variant,
    duplicate: Callable[[tuple[list[nn.Parameter], Lion]], tuple[list[nn.Parameter], Lion]],
    steps: int,
) -> None:
    """deepcopy, pickle and torch.save keep everything, before the first step and after it; the copy stands alone."""
    params = weights()
    optimizer = variant(params, lr=0.01, weight_decay=0.1, percentile_clipping=80, seed=7)
    train(optimizer, params, range(1, steps + 1))
    before = snapshot(optimizer)
    twins, twin = duplicate((params, optimizer))
    assert type(twin) is type(optimizer)
    assert_same(snapshot(twin), before)
    train(twin, twins, [3, 4])
    assert_same(snapshot(optimizer), before)
    train(optimizer, params, [3, 4])
    assert_same(snapshot(twin), snapshot(optimizer))


@pytest.mark.parametrize("duplicate", [copied, pickled])
def test_a_copy_has_every_public_attribute(
    variant: Variant, duplicate: Callable[[tuple[list[nn.Parameter], Lion]], tuple[list[nn.Parameter], Lion]]
) -> None:
    """No public attribute is lost, torch's own check; and what needs private ones, repr and counters, still works."""
    params = weights(shapes=[(64, 64)])
    optimizer = variant(params)
    params[0].grad = torch.full((64, 64), torch.inf)
    optimizer.step()
    _, twin = duplicate((params, optimizer))
    public = {key for key in vars(optimizer) if not key.startswith("_")}
    assert public
    assert public <= vars(twin).keys()
    assert repr(twin) == repr(optimizer)
    assert twin.skipped_elements() == optimizer.skipped_elements() == 64 * 64
    assert_same(twin.momentum(twin.param_groups[0]["params"][0]), optimizer.momentum(params[0]))


@pytest.mark.parametrize(("dtype", "settings"), DTYPES.values(), ids=DTYPES)
def test_state_dict_round_trip(variant: Variant, dtype: torch.dtype, settings: dict[str, Any]) -> None:
    """save, load with weights_only, continue: the same bits as never having stopped, whatever the parameters' dtype."""
    params = weights(dtype)
    optimizer = variant(params, lr=0.01, weight_decay=0.1, percentile_clipping=80, seed=2**63 + 1, **settings)
    train(optimizer, params, [1, 2, 3])
    resumed_params = copy.deepcopy(params)
    resumed = variant(resumed_params, **settings)
    resumed.load_state_dict(state_dict=through_file(optimizer.state_dict()))
    assert_same(resumed.state_dict(), optimizer.state_dict())
    train(optimizer, params, [4, 5])
    train(resumed, resumed_params, [4, 5])
    assert_same(resumed.state_dict(), optimizer.state_dict())
    assert_same(snapshot(resumed)["params"], snapshot(optimizer)["params"])


def test_state_holds_what_the_design_names(variant: Variant) -> None:
    """State is a step, int64 in a tensor, then float32 momentum, or uint8 codes and float32 scales by row."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, [1])
    per_byte, block = 8 // min(variant.bits, 8), {8: 256, 4: 128, 2: 64}.get(variant.bits, 0)
    for position, param in enumerate(params):
        state = dict(optimizer.state_dict()["state"][position])
        assert_same(state.pop("step"), torch.tensor(1))
        found = {key: (tuple(value.shape), value.dtype) for key, value in state.items()}
        if variant.bits == 32 or param.numel() < 4096:
            assert found == {"exp_avg": (tuple(param.shape), torch.float32)}
        else:
            rows, columns = param.shape
            codes, scales = (rows, -(-columns // per_byte)), (rows, -(-columns // block))
            assert found == {"exp_avg_codes": (codes, torch.uint8), "exp_avg_scale": (scales, torch.float32)}


def test_loading_beside_the_original_shares_nothing(variant: Variant) -> None:
    """An optimizer that loaded a live state dict owns its state: neither the dict nor the other one changes it."""
    params = weights()
    optimizer = variant(params, lr=torch.tensor(0.01), percentile_clipping=80)
    train(optimizer, params, [1, 2])
    given = optimizer.state_dict()
    before = copy.deepcopy(given)
    other_params = copy.deepcopy(params)
    other = variant(other_params)
    other.load_state_dict(given)
    assert_same(given, before)
    train(other, other_params, [3])
    other.param_groups[0]["lr"].fill_(0.5)
    assert_same(given, before)
    assert_same(optimizer.state_dict(), before)
    held = snapshot(other)
    for state in given["state"].values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
    given["param_groups"][0]["lr"].zero_()
    assert_same(snapshot(other), held)


@pytest.mark.parametrize("missing", NEWER)
def test_a_state_dict_without_a_newer_setting_loads(variant: Variant, missing: str) -> None:
    """A setting that an older version did not write comes from the optimizer that loads; training continues."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, [1])
    older = copy.deepcopy(optimizer.state_dict())
    del older["param_groups"][0][missing]
    again_params = copy.deepcopy(params)
    again = variant(again_params)
    again.load_state_dict(older)
    assert_same(again.state_dict(), optimizer.state_dict())


def test_parameter_names_are_saved_and_loaded(variant: Variant) -> None:
    """Names pass through a state dict as in torch: the loaded ones win, and without any the optimizer keeps its own."""
    params = weights()
    optimizer = variant(list(zip("abcd", params, strict=True)))
    train(optimizer, params, [1])
    saved = through_file(optimizer.state_dict())
    assert saved["param_groups"][0]["param_names"] == list("abcd")
    renamed = variant(list(zip("wxyz", copy.deepcopy(params), strict=True)))
    renamed.load_state_dict(saved)
    assert renamed.param_groups[0]["param_names"] == list("abcd")
    nameless = copy.deepcopy(saved)
    del nameless["param_groups"][0]["param_names"]
    kept = variant(list(zip("wxyz", copy.deepcopy(params), strict=True)))
    kept.load_state_dict(nameless)
    assert kept.param_groups[0]["param_names"] == list("wxyz")


def test_the_seed_of_a_checkpoint_also_serves_groups_added_later(variant: Variant) -> None:
    """Resume, then add a group: it draws the noise that it would have drawn without the interruption."""
    params, late = weights(torch.bfloat16), weights(torch.bfloat16, [(64, 65)])
    optimizer = variant(params, seed=11, param_rounding="stochastic")
    train(optimizer, params, [1])
    resumed_params, resumed_late = copy.deepcopy((params, late))
    resumed = variant(resumed_params, param_rounding="stochastic")
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, group in ((optimizer, late), (resumed, resumed_late)):
        one.add_param_group({"params": group})
    train(optimizer, [*params, *late], [2, 3])
    train(resumed, [*resumed_params, *resumed_late], [2, 3])
    assert_same(resumed.state_dict(), optimizer.state_dict())
    assert_same(snapshot(resumed)["params"], snapshot(optimizer)["params"])


def test_state_that_belongs_to_no_parameter_passes_through(variant: Variant) -> None:
    """Notes in ``optimizer.state`` under a key of their own are copied and loaded as they are, as torch does it."""
    params = weights(shapes=[(64, 64)])
    optimizer = variant(params)
    train(optimizer, params, [1])
    optimizer.state["epoch"] = {"count": 3}  # type: ignore[index]
    target = variant(copy.deepcopy(params))
    target.load_state_dict(optimizer.state_dict())
    assert target.state["epoch"] == {"count": 3}  # type: ignore[index]
    optimizer.state["note"] = 5  # type: ignore[index]
    twin_params, twin = copy.deepcopy((params, optimizer))
    assert twin.state["note"] == 5  # type: ignore[index]
    train(twin, twin_params, [2])
