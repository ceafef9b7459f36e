"""Advice for users of AdamW: converted settings, and warnings that point at their own line."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import lionbits
from lionbits import Lion, Lion8bit, PagedLion, QLion, from_adamw

from .family import Variant, weights

ADAMS = (0.9, 0.999)


def said(build: Callable[[], object], match: str) -> list[warnings.WarningMessage]:
    """What ``build`` warns of, every time, whatever was said before."""
    with pytest.warns(UserWarning, match=match) as caught:
        build()
    return list(caught)


@pytest.mark.parametrize(("factor", "lr", "weight_decay"), [(10, 2.0**-10, 5.0), (3.2, 2.0**-10 * 3.125, 1.6)])
def test_from_adamw_keeps_the_strength_of_decay(factor: float, lr: float, weight_decay: float) -> None:
    """The learning rate falls by the factor that weight decay grows by; 10 unless another is given."""
    adamw = {"lr": 10 * 2.0**-10, "weight_decay": 0.5}
    converted = from_adamw(**adamw, factor=factor)
    assert converted == pytest.approx({"lr": lr, "weight_decay": weight_decay}, rel=1e-15)  # decimals, rounded
    assert factor != 10 or converted == from_adamw(**adamw)
    strength = converted["lr"] * converted["weight_decay"]
    assert strength == pytest.approx(adamw["lr"] * adamw["weight_decay"], rel=1e-15)


def test_what_from_adamw_gives_goes_into_every_constructor(variant: Variant) -> None:
    optimizer = variant(weights(), **from_adamw(1e-3, 0.25, 4))
    assert {key: optimizer.defaults[key] for key in ("lr", "weight_decay")} == {"lr": 2.5e-4, "weight_decay": 1.0}


@pytest.mark.parametrize(
    ("arguments", "kind", "match"),
    [
        ((-1e-3, 0.1), ValueError, "lr=-0.001"),
        (("1e-3", 0.1), TypeError, "lr='1e-3'"),
        ((1e-3, float("inf")), ValueError, "weight_decay=inf"),
        ((1e-3, None), TypeError, "weight_decay=None"),
        ((1e-3, 0.1, 0.1), ValueError, "factor=0.1 .* must be >= 1.*between 3 and 10"),
        ((1e-3, 0.1, float("nan")), ValueError, "factor=nan"),
        ((1e-3, 0.1, True), TypeError, "factor=True"),
    ],
)
def test_from_adamw_refuses_by_name(arguments: tuple[Any, ...], kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        from_adamw(*arguments)


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"optim_bits": 2}, r"optim_bits=2 is for research.*17 %"), ({"betas": ADAMS}, r"adam_beta2=0\.99 among")],
    ids=["two bits", "Adam's betas"],
)
def test_warned_once_where_it_was_asked_for(settings: dict[str, Any], match: str) -> None:
    """Settings that train badly warn on the user's own line, and once, however many groups have them."""
    plain, named = [{"params": [p]} for p in weights()], list(zip("abcd", weights(), strict=True))
    late = {"params": weights(shapes=[(4, 4)]), **settings}
    for build in (
        lambda: Lion(weights(), **settings),
        lambda: Lion(plain, **settings),
        lambda: Lion([{**group, **settings} for group in plain]),
        lambda: Lion(weights()).add_param_group(late),
        lambda: PagedLion(weights(), **settings),
        lambda: Lion(named, overrides={"a": settings, "b": {**settings, "lr": 1.0}}),
    ):
        assert [warning.filename for warning in said(build, match)] == [__file__]
    optimizer = Lion(weights(shapes=[(3,)]), weight_decay=1.0)
    assert len(said(lambda: optimizer.add_param_group(late), match)) == 1
    optimizer.add_param_group({"params": weights(shapes=[(4, 4)]), **settings})  # and a second time says nothing


@pytest.mark.parametrize(
    ("note", "meant"), [("weigth_decay", "weight_decay"), ("blocksize", "block_size"), ("beta", "betas")]
)
def test_a_setting_misspelt_in_a_group_warns(note: str, meant: str) -> None:
    """A group may carry notes, so it is no error; once for each name, on the user's line."""
    one, other = weights(shapes=[(3,), (4,)])
    said_ = said(lambda: Lion([{"params": one, note: 1}, {"params": other, note: 2}]), rf"'{note}'.*mean '{meant}'\?")
    assert [warning.filename for warning in said_] == [__file__]


def test_other_notes_in_a_group_say_nothing(variant: Variant) -> None:
    """What trainers write into groups: their own names, some with a setting's within."""
    notes = (
        "name",
        "initial_lr",
        "lr_scale",
        "no_weight_decay",
        "max_momentum",
        "weight_decay_mult",
        "layer_decay",
        "lrs",
    )
    variant([{"params": weights(), **dict.fromkeys(notes, 1)}])


def test_other_betas_say_nothing(variant: Variant) -> None:
    for betas in ((0.9, 0.99), (0.95, 0.98), (0.95, 0.999)):
        variant(weights(), betas=betas)
    assert len(said(lambda: QLion(weights(), betas=ADAMS), "are Adam's")) == 1


def test_a_warning_that_is_an_error_leaves_the_optimizer_as_it_was() -> None:
    optimizer = Lion(weights())
    with pytest.raises(UserWarning, match="are Adam's"):  # pytest's settings make errors of warnings
        optimizer.add_param_group({"params": weights(shapes=[(4, 4)]), "betas": ADAMS})
    assert len(optimizer.param_groups) == 1


TRAP = "replaces this Lion by DeepSpeedCPUAdam"


@pytest.mark.parametrize("device", ["cpu", "nvme"])
def test_offload_that_a_launcher_announced_warns(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """``accelerate launch`` says in the environment that the optimizer is going to be replaced."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", device)
    caught = said(lambda: Lion8bit([{"params": [p]} for p in weights()]), TRAP)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(
    "environment",
    [
        {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
        {"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
        {"ACCELERATE_USE_DEEPSPEED": "true"},
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none"},
    ],
)
def test_no_offload_no_warning(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    Lion8bit(weights())


OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


@pytest.mark.parametrize(
    ("config", "warns"),
    [
        (OFFLOAD, True),
        ({**OFFLOAD, "zero_force_ds_cpu_optimizer": False}, False),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}}, False),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": None}}, False),
        (None, False),
    ],
)
def test_what_accelerate_holds_counts_more_than_the_environment(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any] | None, warns: bool
) -> None:
    """An Accelerator that exists has read its configuration, a file perhaps; ecosystem/ tries it with a real one."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none" if warns else "cpu")
    plugin = None if config is None else SimpleNamespace(deepspeed_config=config)
    state = SimpleNamespace(deepspeed_plugin=plugin)
    module = SimpleNamespace(is_initialized=lambda: True, AcceleratorState=lambda: state)
    monkeypatch.setitem(sys.modules, "accelerate.state", module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lionbits.Lion(weights())
    assert [str(warning.message) for warning in caught if TRAP not in str(warning.message)] == []
    assert len(caught) == warns


def test_accelerate_is_not_imported() -> None:
    """Looking for accelerate's state costs nobody its import."""
    script = "import sys, torch, lionbits; lionbits.Lion([torch.zeros(2)]); print('accelerate' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
