"""Devices that have no float64, as Apple's: the same bits as elsewhere, in whatever a step, a save or a load does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion, QLion, interop

from .family import FAMILY, Variant, assert_same, gradient, weights
from .narrow_device import DEVICE, Narrow, NarrowDevice


@pytest.fixture
def device() -> Iterator[torch.device]:
    with NarrowDevice():
        yield DEVICE


def test_the_device_refuses_float64(device: torch.device) -> None:
    """Else the tests below show nothing."""
    there = torch.ones(3).to(device)
    assert isinstance(there, Narrow)
    assert there.device == device
    for make in (
        there.double,
        lambda: there.to(torch.float64),
        lambda: torch.zeros(3, dtype=torch.float64, device=device),
        lambda: torch.ones(3, dtype=torch.float64).to(device),
    ):
        with pytest.raises(TypeError, match="float64"):
            make()
    assert (there + there).sum().item() == 6
    assert (there + there).to("cpu").double().device.type == "cpu"


RESIDENT = ("Lion", "Lion4bit", "QLion")

SETTINGS: dict[str, dict[str, Any]] = {
    "usual": {},
    "grad_clip": {"grad_clip": 0.5},
    "percentile_clipping": {"percentile_clipping": 50, "grad_clip": 0.5},
    "mask": {"cautious": "mask"},
    "c-optim": {"cautious": "c-optim"},
    "timm": {"cautious": "timm", "grad_clip": 0.5},
    "one scale": {"block_wise": False, "rounding": "stochastic"},
    "propagate": {"nonfinite": "propagate", "grad_clip": 0.5},
}


def on(device: torch.device, params: list[nn.Parameter]) -> list[nn.Parameter]:
    """Copies of the parameters there."""
    return [nn.Parameter(param.detach().clone().to(device)) for param in params]


def train_on(optimizer: Any, params: list[nn.Parameter], steps: list[int], scale: float | None) -> None:
    """Steps, as a GradScaler has them taken where there is a scale."""
    for step in steps:
        for position, param in enumerate(params):
            grad = gradient(torch.empty(param.shape, dtype=param.dtype, device="cpu"), position, step)
            param.grad = (grad if scale is None else grad * scale).to(param.device)
        if scale is not None:
            optimizer.grad_scale = torch.tensor(scale, device="cpu").to(params[0].device)
            optimizer.found_inf = torch.zeros(1, device="cpu").to(params[0].device)
        optimizer.step()


def near(value: Any) -> Any:
    """Plain tensors of the CPU in place of the device's."""
    if isinstance(value, dict):
        return {key: near(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(near(item) for item in value)
    return value.detach().to("cpu") if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("scale", [None, 3.0], ids=["plain", "scaled"])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    "variant", [v for v in FAMILY if v.name in ("Lion", "Lion4bit", "QLion")], ids=lambda v: v.name
)
def test_a_step_has_the_bits_of_the_cpus(variant: Variant, name: str, scale: float | None, device: Any) -> None:
    """Whatever is formed in float64: norms, what a mask makes up for, a GradScaler's factor."""
    settings = dict(SETTINGS[name])
    if variant.cls is QLion and "cautious" in settings:
        settings["cautious"] = True  # it has no mask
    for dtype, more in ((torch.float32, {}), (torch.bfloat16, {"param_rounding": "compensated"})):
        plain = weights(dtype)
        params = on(device, plain)
        pairs = [(variant(them, lr=0.01, **settings, **more), them) for them in (plain, params)]
        for optimizer, them in pairs:
            train_on(optimizer, them, [1, 2, 3], scale)
        (here, _), (there, _) = pairs
        assert all(param.device == device for param in params)
        assert_same(near(list(params)), near(list(plain)))
        saved = near(there.state_dict())
        assert_same(saved, near(here.state_dict()))
        assert_same(there.skipped_elements(), here.skipped_elements())
        again = on(device, plain)
        resumed = variant(again, lr=0.01, **settings, **more)
        resumed.load_state_dict(copy.deepcopy(saved))
        for optimizer, them in ((resumed, again), (here, plain)):
            train_on(optimizer, them, [4], scale)
        assert_same(near(list(again)), near(list(plain)))
        assert_same(near(resumed.momentum(again[0])), here.momentum(plain[0]))


def test_what_a_conversion_cost_is_reported_there_too(device: torch.device) -> None:
    params = on(device, weights())
    optimizer = Lion(params)
    train_on(optimizer, params, [1], None)
    theirs = interop.to_lion_pytorch(optimizer)
    assert all(
        found.exact == param.numel() for found, param in zip(interop.compare(theirs, optimizer), params, strict=True)
    )
