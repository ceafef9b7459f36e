"""Lions that keep plain momentum, the real ones where they are installed: in, out, and on from there as before."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion, Lion4bit, Lion8bit, Lion32bit, QLion, interop
from lionbits.interop import flashlion

from ..family import assert_same, snapshot, train, weights


def _imported(module: str) -> ModuleType:
    """A peer's module. timm's optimizers need nothing of timm, and ``import timm`` wants torchvision."""
    top, _, rest = module.partition(".")
    found = importlib.util.find_spec(top)
    if found is None:
        pytest.skip(f"{top} is not installed")
    if top == "timm" and "_timm_alone" not in sys.modules:
        alone = ModuleType("_timm_alone")
        alone.__path__ = [str(Path(path, "optim")) for path in found.submodule_search_locations or ()]
        sys.modules["_timm_alone"] = alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside somebody else's import
        return importlib.import_module(f"_timm_alone.{rest.rpartition('.')[2]}" if top == "timm" else module)


#: name -> (module, function in, function out, its settings for an exact comparison)
PEERS: dict[str, tuple[str, Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "lion-pytorch": ("lion_pytorch", interop.from_lion_pytorch, interop.to_lion_pytorch, {}),
    "timm": ("timm.optim.lion", interop.from_timm, interop.to_timm, {"foreach": False}),
    "pytorch-optimizer": (
        "pytorch_optimizer",
        interop.from_pytorch_optimizer,
        interop.to_pytorch_optimizer,
        {"foreach": False},
    ),
    "optimi": ("optimi", interop.from_optimi, interop.to_optimi, {"foreach": False}),
}


def peer(name: str, params: list[nn.Parameter], **more: Any) -> torch.optim.Optimizer:
    module, _, _, settings = PEERS[name]
    made: torch.optim.Optimizer = _imported(module).Lion(params, **{"lr": 0.002, **settings, **more})
    return made


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_from_there_here_and_back_is_exact(name: str, dtype: torch.dtype) -> None:
    """Momentum, learning rate, betas and decay arrive; what is written back is what it saved, for it to load."""
    params = weights(dtype)
    theirs = peer(name, params, betas=(0.95, 0.98), weight_decay=0.3)
    train(theirs, params, range(3))
    given = theirs.state_dict()
    assert interop.recognise(given) == name
    ours = Lion32bit(params)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made = PEERS[name][1](given, ours)
    assert bool(told) == (name == "optimi" and dtype != torch.float32)  # its Kahan compensation
    assert all("kahan_comp" in str(one.message) and one.filename == __file__ for one in told)
    ours.load_state_dict(made)
    for param in params:
        assert_same(ours.momentum(param), theirs.state[param]["exp_avg"].float())
    group = ours.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.002, (0.95, 0.98), 0.3)

    written = PEERS[name][2](ours)
    assert interop.recognise(written) == name
    fresh_params = [nn.Parameter(param.detach().clone()) for param in params]
    fresh = peer(name, fresh_params)
    fresh.load_state_dict(written)
    for one, other in zip(params, fresh_params, strict=True):
        assert_same(fresh.state[other]["exp_avg"], theirs.state[one]["exp_avg"])
    if dtype == torch.float32:  # elsewhere optimi's compensation was lost
        train(theirs, params, [3, 4])
        train(fresh, fresh_params, [3, 4])
        assert_same(fresh_params, params)


@pytest.mark.parametrize("name", PEERS)
def test_what_it_saved_before_its_first_step_is_read(name: str) -> None:
    params = weights()
    given = peer(name, params, weight_decay=0.3).state_dict()
    ours = Lion8bit(params)
    ours.load_state_dict(PEERS[name][1](given, ours))
    assert not ours.state
    assert ours.param_groups[0]["weight_decay"] == 0.3


@pytest.mark.parametrize("name", PEERS)
def test_load_state_dict_names_the_function(name: str) -> None:
    params = weights()
    theirs, ours = peer(name, params), Lion32bit(params)
    train(theirs, params, [0])
    before = snapshot(ours)
    with pytest.raises(ValueError, match=rf"form of {name}.*lionbits\.interop\.{PEERS[name][1].__name__}\("):
        ours.load_state_dict(theirs.state_dict())
    assert_same(snapshot(ours), before)


def test_settings_that_both_have_are_carried_over() -> None:
    """Caution and maximize, under each one's own name for them."""
    params = weights()
    ours = Lion8bit(params)
    for name, theirs, mine in (
        ("timm", {"caution": True, "maximize": True}, {"cautious": "timm", "maximize": True}),
        ("timm", {}, {"cautious": None, "maximize": False}),
        ("pytorch-optimizer", {"cautious": True}, {"cautious": "c-optim"}),
    ):
        given = peer(name, params, **theirs).state_dict()
        ours.load_state_dict(PEERS[name][1](given, ours))
        assert {key: ours.param_groups[0][key] for key in mine} == mine
        back = PEERS[name][2](ours)["param_groups"][0]
        assert {key: back[key] for key in theirs} == theirs


def test_pytorch_optimizers_count_of_steps_is_kept() -> None:
    params = weights()
    theirs = peer("pytorch-optimizer", params)
    train(theirs, params, range(5))
    ours = Lion4bit(params)
    ours.load_state_dict(interop.from_pytorch_optimizer(theirs.state_dict(), ours))
    assert {state["step"] for state in ours.state.values()} == {5}
    assert interop.to_pytorch_optimizer(ours)["param_groups"][0]["step"] == 5


@pytest.mark.parametrize(
    ("name", "settings", "read"),
    [
        ("corrected_weight_decay", {"corrected_weight_decay": True}, interop.from_timm),
        ("weight_decouple", {"weight_decouple": False}, interop.from_pytorch_optimizer),
        ("fixed_decay", {"fixed_decay": True}, interop.from_pytorch_optimizer),
        ("decouple_lr", {"decouple_lr": True}, interop.from_optimi),
    ],
)
def test_decay_by_another_rule_is_refused_where_there_is_decay(
    name: str, settings: dict[str, Any], read: Callable[..., Any]
) -> None:
    group = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.1, "params": [0, 1, 2, 3], **settings}
    ours = Lion8bit(weights())
    with pytest.raises(ValueError, match=name):
        read({"state": {}, "param_groups": [group]}, ours)
    read({"state": {}, "param_groups": [{**group, "weight_decay": 0.0}]}, ours)


def test_what_a_peer_cannot_carry_on_is_told() -> None:
    """Once, in words, at the caller's line; and nothing is said where nothing is lost."""
    params = weights(torch.bfloat16)
    ours = Lion8bit(params, cautious="mask", grad_clip=1.0, percentile_clipping=90, param_rounding="compensated")
    train(ours, params, [0])
    lost = r"cautious='mask', grad_clip=1.0, param_rest, .*, percentile_clipping=90"
    with pytest.warns(UserWarning, match=lost) as told:
        interop.to_bitsandbytes(ours)
    assert (len(told), told[0].filename) == (1, __file__)
    with pytest.warns(UserWarning, match="cautious='mask'"):
        interop.to_timm(ours)
    params = weights()
    ours = Lion8bit(params, cautious="timm", maximize=True)
    train(ours, params, [0])
    interop.to_timm(ours)


class Original:
    """QLion's formulas: sign of the new momentum; int8 codes of seven levels either side, one scale per tensor."""

    def __init__(self, params: list[nn.Parameter], dtype: torch.dtype) -> None:
        self.params, self.momenta = params, [torch.zeros_like(param, dtype=dtype) for param in params]

    def step(self, lr: float, b1: float, b2: float) -> None:
        for param, m in zip(self.params, self.momenta, strict=True):
            assert param.grad is not None
            m.mul_(b2).add_(param.grad * (1 - b2))
            param.data.sub_(lr * (m * b1 + param.grad * (1 - b1)).sign())

    def state_dict(self, **group: Any) -> dict[str, Any]:
        state: dict[int, dict[str, Any]] = {}
        for key, m in enumerate(self.momenta):
            scale = m.abs().max() / 7
            codes = torch.clamp(torch.round(m / scale), -7, 7).to(torch.int8)
            state[key] = {"quant_exp_avg": codes, "scale": scale} if m.numel() > 1024 else {"exp_avg": m}
        settings = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.0, "use_4bit": True, "cautious": False}
        settings |= {"quant_threshold": 1024, "grad_clip": 0.0, **group}
        return {"state": state, "param_groups": [{**settings, "params": list(range(len(self.momenta)))}]}


def qlion(dtype: torch.dtype = torch.float32) -> tuple[Original, list[nn.Parameter]]:
    params = weights(dtype)
    original = Original(params, dtype)
    for step in range(3):
        for position, param in enumerate(params):
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(9 * step + position)).to(
                dtype
            )
        original.step(1e-3, 0.9, 0.99)
    return original, params


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reloaded", [False, True])
def test_qlions_codes_are_decoded_as_it_decodes_them(dtype: torch.dtype, reloaded: bool) -> None:
    """codes * scale in the scale's dtype; torch's load makes floats of the codes, and the scale may be a number."""
    original, params = qlion(dtype)
    given = original.state_dict()
    held = copy.deepcopy(given)
    expected = [s["quant_exp_avg"] * s["scale"] if "scale" in s else s["exp_avg"] for s in given["state"].values()]
    if reloaded:
        for state in given["state"].values():
            if "scale" in state:
                state["quant_exp_avg"] = state["quant_exp_avg"].to(dtype)
        held = copy.deepcopy(given)
    assert interop.recognise(given) == "qlion"
    ours = Lion32bit(params)
    ours.load_state_dict(interop.from_qlion(given, ours))
    for param, momentum in zip(params, expected, strict=True):
        assert_same(ours.momentum(param), momentum.float())
    assert_same(given, held)
    given["state"][0] = {"quant_exp_avg": torch.zeros(64, 64, dtype=torch.int8), "scale": 0.0}
    assert not interop.from_qlion(given, ours)["state"][0]["exp_avg"].any()
    given["state"][0]["scale"] = None
    with pytest.raises(ValueError, match="scale=None"):
        interop.from_qlion(given, ours)


def test_qlions_training_goes_on_under_its_own_rule() -> None:
    """Unquantised, the signs of its next updates are those of Lion with (b1*b2, b2), which is what it becomes."""
    original, params = qlion()
    given = original.state_dict()
    given["state"] = {key: {"exp_avg": m.clone()} for key, m in enumerate(original.momenta)}
    mine = [nn.Parameter(param.detach().clone()) for param in params]
    ours = Lion32bit(mine)
    ours.load_state_dict(interop.from_qlion(given, ours))
    assert ours.param_groups[0]["betas"] == (0.9 * 0.99, 0.99)
    for step in range(3, 9):
        for position, (param, twin) in enumerate(zip(params, mine, strict=True)):
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(9 * step + position))
            twin.grad = param.grad.clone()
        original.step(1e-3, 0.9, 0.99)
        ours.step()
    for param, twin in zip(params, mine, strict=True):
        assert torch.allclose(param, twin, rtol=0, atol=1e-6)  # a wrong sign would be 2e-3

    back = interop.to_qlion(ours)
    assert back["param_groups"][0]["betas"] == pytest.approx((0.9, 0.99), rel=1e-15)
    assert back["param_groups"][0].keys() >= {"use_4bit", "quant_threshold", "cautious", "grad_clip"}
    assert interop.recognise(back) == "qlion"


def test_qlions_settings_and_its_face_here() -> None:
    """Clipping and caution come along; the QLion here keeps the betas where it is asked for Lion's order."""
    original, params = qlion()
    given = original.state_dict(cautious=True, grad_clip=0.5)
    plain, face, faithful = (
        Lion4bit(params),
        QLion(params, use_4bit=True),
        QLion(params, use_4bit=True, momentum_first=True),
    )
    expected = {"plain": (0.9 * 0.99, 0.99), "face": (0.9, 0.99), "faithful": (0.9 * 0.99, 0.99)}
    for name, ours in (("plain", plain), ("face", face), ("faithful", faithful)):
        ours.load_state_dict(interop.from_qlion(given, ours))
        group = ours.param_groups[0]
        assert (group["betas"], group["cautious"], group["grad_clip"]) == (expected[name], "gradient", 0.5)
        assert group["optim_bits"] == 4
    with pytest.raises(ValueError, match="b1 must be less than b2"):
        interop.to_qlion(Lion32bit(params, betas=(0.99, 0.9)))


def flash(momentum: torch.Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """FlashLion's compressed state of a momentum, by its formulas."""
    groups = nn.functional.pad(momentum.reshape(-1), (0, -momentum.numel() % 32)).reshape(-1, 32)
    absmax = groups.abs().amax(dim=1).clamp(min=1e-12)
    unit = groups / absmax[:, None]
    codes = torch.floor(127 * (2 * unit / (1 + unit.abs())) + 0.5).to(torch.int8).reshape(-1)[: momentum.numel()]
    scales = absmax.to(torch.float16)
    return {
        "exp_avg::quantized": codes.reshape(momentum.shape),
        "exp_avg::scales": scales.view(torch.bfloat16) if dtype == torch.bfloat16 else scales,
    }


FLASH_GROUP = {
    "betas": (0.9, 0.99),
    "weight_decay": 0.1,
    "lr": 1e-3,
    "initial_lr": 1e-3,
    "master_bytewidth": 3,
    "quantize": True,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(64, 64), (3, 77), (5,), ()], ids=str)
def test_flashlions_codes_are_near_what_was_coded(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Within the widest step of softsign's inverse, 2/127 of the group's largest, and the scale's rounding."""
    momentum = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    state = flash(momentum, dtype)
    given = {"state": {0: state}, "param_groups": [{**FLASH_GROUP, "params": [0]}]}
    assert interop.recognise(given) == "flashlion"
    ours = Lion32bit([nn.Parameter(torch.zeros(shape, dtype=dtype))])
    ours.load_state_dict(interop.from_flashlion(given, ours))
    (param,) = ours.param_groups[0]["params"]
    assert (ours.momentum(param) - momentum).abs().max() <= momentum.abs().max() * (2 / 127 + 2.0**-10)
    assert ours.param_groups[0]["initial_lr"] == 1e-3


def test_flashlions_own_decoder_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel, in Triton's interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for module in ("triton", "flashoptim"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    kernels = _imported("flashoptim.optimizers")
    momentum = torch.randn(3, 77) * torch.logspace(-6, 2, 3)[:, None]
    state = flash(momentum, torch.float32)
    codes, scales = state["exp_avg::quantized"], state["exp_avg::scales"]
    expected = torch.empty_like(momentum)
    kernel = kernels._triton_dequantize_kernel.fn
    kernel[(1,)](codes, scales, expected, momentum.numel(), 127.0, 32, False, True, BLOCK_SIZE_N=256)
    assert_same(
        flashlion.read({"state": {0: state}, "param_groups": [{**FLASH_GROUP, "params": [0]}]}).held[0].exp_avg(),
        expected,
    )


def test_flashlions_plain_form_master_bits_and_shards() -> None:
    group = {**FLASH_GROUP, "params": [0]}
    ours = Lion8bit([nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))])
    plain = {"state": {0: {"exp_avg": torch.ones(64, 64, dtype=torch.bfloat16)}}, "param_groups": [group]}
    ours.load_state_dict(interop.from_flashlion(plain, ours))
    assert torch.equal(ours.momentum(ours.param_groups[0]["params"][0]), torch.ones(64, 64))
    plain["state"][0]["error_bits"] = torch.ones(64, 64, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="get_fp32_model_state_dict"):
        interop.from_flashlion(plain, ours)
    state = flash(torch.ones(64, 64), torch.bfloat16)
    state["exp_avg::scales"] = state["exp_avg::scales"][:7]
    with pytest.raises(ValueError, match="7 scales for 4,096 codes"):
        interop.from_flashlion({"state": {0: state}, "param_groups": [group]}, ours)


class ScaleByLionState:
    """What optax calls it, with what numpy has of an array."""

    def __init__(self, count: Any, mu: Any) -> None:
        self.count, self.mu = count, mu


@pytest.mark.parametrize("cls", [Lion32bit, Lion8bit, Lion4bit])
def test_optax_by_name_and_by_order(cls: type[Lion]) -> None:
    """A nested tree of arrays by names, or a list; there and back."""
    net = nn.Sequential(nn.Linear(64, 80), nn.Linear(80, 64))
    ours = cls(net.named_parameters())
    train(ours, list(net.parameters()), range(4))
    written = interop.to_optax(ours)
    assert interop.recognise(written) == "optax"
    assert (written["count"], list(written["mu"])) == (4, [name for name, _ in net.named_parameters()])
    tree = {outer: {leaf: written["mu"][f"{outer}.{leaf}"] for leaf in ("weight", "bias")} for outer in ("1", "0")}
    for state in (written, ScaleByLionState(torch.tensor(4), tree), {"count": 4, "mu": tree}):
        twin = copy.deepcopy(net)
        again = cls(twin.named_parameters())
        again.load_state_dict(interop.from_optax(state, again))
        assert all(row.exact == row.elements for row in interop.compare(state, again))
        assert_same(interop.to_optax(again)["count"], 4)
    listed = {"count": 4, "mu": list(written["mu"].values())}
    split = cls([{"params": list(net[0].parameters())}, {"params": list(net[1].parameters())}])
    split.load_state_dict(interop.from_optax(listed, split))
    assert torch.equal(split.momentum(net[1].bias), ours.momentum(net[1].bias))


def test_bad_optax_states_are_refused() -> None:
    net = nn.Linear(64, 80)
    ours = Lion8bit(net.named_parameters())
    weight, bias = torch.zeros(80, 64), torch.zeros(80)
    for state, words in (
        ({"mu": [weight, bias]}, "'count'"),
        ({"count": 1.5, "mu": [weight, bias]}, "count=1.5"),
        ({"count": 1, "mu": weight}, "mapping of names, or a list"),
        ({"count": 1, "mu": {"weight": weight}}, "bias"),
        ({"count": 1, "mu": [weight]}, r"\[2\] parameters, the state dict's \[1\]"),
        ({"count": 1, "mu": {"weight": weight.T, "bias": bias}}, r"\(64, 80\), the optimizer's parameter \(80, 64\)"),
        ((1, [weight, bias]), "ScaleByLionState"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            interop.from_optax(state, ours)
    with pytest.raises(ValueError, match="no state yet"):
        interop.to_optax(ours)
