"""Cases of whole steps: a few parameters, their settings, gradients, and all bits after each step."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import Any, TypeAlias

from lionbits_conformance.oracle.floats import Number, of_float
from lionbits_conformance.oracle.lion import OracleLion
from lionbits_conformance.oracle.records import LISTS, TYPES, Array, Settings, State
from lionbits_conformance.oracle.rule import rates_of

from .draws import Draws
from .texts import canonical, double, single, words

Case = dict[str, Any]

#: (shape, type, settings of its own) of each parameter.
Params: TypeAlias = tuple[tuple[tuple[int, ...], str, dict[str, Any]], ...]

#: Settings that are binary64 numbers.
DOUBLES = ("lr", "weight_decay", "grad_clip")

#: Bits of a field's elements; ``param_residual`` is written as integers.
WIDTHS = {"exp_avg": 32, "exp_avg_codes": 8, "exp_avg_scale": 32, "grad_norms": 32}


@dataclass(frozen=True)
class WholeSteps:
    """Settings and inputs of one case.

    Attributes:
        name: the subject of the case.
        settings: other than the defaults, for all parameters.
        params: (shape, type, settings of its own) of each.
        grads: types of gradients, in cyclic order.
        kinds: of gradient values, in cyclic order over the steps.
        schedule: settings that change, by step.
        loss_scales: by step.
        infinite: steps at which the loss scaler found something that is not finite.
        missing: (step, parameter) without gradient.
        steps: how many.
    """

    name: str
    settings: dict[str, Any]
    params: Params = (((3, 37), "float32", {}),)
    grads: tuple[str, ...] = ("float32",)
    kinds: tuple[str, ...] = ("normal", "normal", "cancelling", "zeros")
    schedule: dict[int, dict[str, Any]] = field(default_factory=dict)
    loss_scales: dict[int, float] = field(default_factory=dict)
    infinite: tuple[int, ...] = ()
    missing: tuple[tuple[int, int], ...] = ()
    steps: int = 4


_SMALL: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "min_8bit_size": 1}
_8: dict[str, Any] = {**_SMALL, "optim_bits": 8}
_4: dict[str, Any] = {**_SMALL, "optim_bits": 4}
_TRIO: Params = (((3, 37), "float32", {}), ((2, 64), "bfloat16", {}), ((70,), "float16", {}))
_BF16: Params = (((3, 37), "bfloat16", {}), ((5,), "bfloat16", {}))

WHOLE_STEPS = (
    WholeSteps("32 bits, all parameter and gradient types", {"lr": 0.01}, _TRIO, ("bfloat16", "float16", "float32")),
    WholeSteps("32 bits, shapes from empty to three dimensions", {"lr": 0.01, "weight_decay": 1.0},
         (((), "float32", {}), ((0, 4), "float32", {}), ((2, 3, 5), "float32", {}), ((1,), "bfloat16", {}))),
    WholeSteps("8 bits, e3m4 in blocks of 256, dithered: the default", _8, _TRIO),
    WholeSteps("8 bits, short last blocks, nearest", _8 | {"block_size": 32, "rounding": "nearest"}),
    WholeSteps("8 bits, ties", _8 | {"block_size": 32, "rounding": "nearest", "betas": (0.5, 0.0)},
               kinds=("ties:e3m4",)),
    WholeSteps("8 bits, stochastic, seed above 2^32", _8 | {"rounding": "stochastic", "seed": 2**40 + 9}),
    WholeSteps("8 bits, e0m7, one scale for the tensor", _8 | {"state_format": "e0m7", "block_wise": False}),
    WholeSteps("8 bits, e4m3, e1m6 and e2m5 by parameter", _8 | {"block_size": 64},
         tuple(((2, 65), "float32", {"state_format": name}) for name in ("e4m3", "e1m6", "e2m5"))),
    WholeSteps("4 bits, e3m0 in blocks of 128, dithered: the default", _4, _TRIO),
    WholeSteps("4 bits, odd rows, stochastic", _4 | {"rounding": "stochastic", "seed": 2**64 - 1},
         (((5, 33), "float32", {}),)),
    WholeSteps("4 bits, ties", _4 | {"rounding": "nearest", "betas": (0.5, 0.0)}, kinds=("ties:e3m0",)),
    WholeSteps("4 bits, e0m3, e1m2 and e2m1 by parameter", _4 | {"block_size": 32},
         tuple(((2, 35), "float32", {"state_format": name}) for name in ("e0m3", "e1m2", "e2m1"))),
    WholeSteps("4 bits, one scale for the tensor, in the manner of QLion",
         _4 | {"state_format": "e0m3", "block_wise": False, "cautious": "gradient", "grad_clip": 1.0}),
    WholeSteps("rows shorter than 32 elements are one row", _8 | {"block_size": 32},
         (((13, 5), "float32", {}), ((5, 1, 3, 3), "bfloat16", {"param_rounding": "dithered"}),
          ((4, 31), "float16", {}), ((11, 7), "float32", {"optim_bits": 4, "block_size": 64}),
          ((31, 1), "float32", {}))),
    WholeSteps("2 bits, e0m1 and e1m0", _SMALL | {"optim_bits": 2},
         (((3, 37), "float32", {}), ((2, 67), "float32", {"state_format": "e1m0"}))),
    WholeSteps("widths by parameter, small ones at 32 bits", {"lr": 0.01, "optim_bits": 8, "min_8bit_size": 100},
         (((3, 37), "float32", {}), ((99,), "float32", {}), ((4, 31), "float32", {}), ((4, 32), "float32", {}),
          ((100,), "float32", {"optim_bits": 4}))),
    WholeSteps("bfloat16 parameters, dithered and stochastic",
         {"lr": 1e-3, "weight_decay": 0.1, "param_rounding": "dithered"},
         (*_BF16, ((3, 37), "bfloat16", {"param_rounding": "stochastic"}))),
    WholeSteps("bfloat16 parameters, compensated, 32 bits", _8 | {"lr": 1e-3, "param_rounding": "compensated"},
         (*_BF16, ((8,), "float32", {}))),
    WholeSteps("bfloat16 parameters, compensated, 24 bits",
         {"lr": 1e-4, "weight_decay": 0.3, "param_rounding": "compensated", "master_bits": 24, "seed": 5}, _BF16),
    WholeSteps("cautious by mask", _8 | {"cautious": "mask"}, _TRIO, kinds=("normal", "normal", "cancelling")),
    WholeSteps("cautious by mask, as C-Optim and as timm", {"lr": 0.01, "cautious": "c-optim"},
         (((3, 37), "float32", {}), ((), "float32", {}), ((3, 37), "float32", {"cautious": "timm"}))),
    WholeSteps("cautious by gradient, signed zeros", {"lr": 0.01, "cautious": "gradient"}, kinds=("normal", "zeros")),
    WholeSteps("gradients clipped by norm", _8 | {"grad_clip": 0.37}, _TRIO, ("bfloat16", "float32")),
    WholeSteps("gradients clipped by percentile, from zeros on",
               {"lr": 0.01, "percentile_clipping": 30, "grad_clip": 3.0},
         (((7,), "float32", {}), ((5,), "bfloat16", {"percentile_clipping": 1, "grad_clip": 0.0})),
         kinds=("zeros", "normal", "zeros", "huge", "normal", "tiny"),
         schedule={0: {"lr": 0.0}, 1: {"lr": 0.02}}, steps=7),
    WholeSteps("loss scale, a step without effect, gradients that are not there", _4 | {"grad_clip": 1.0},
         _TRIO, ("float16", "float32"), loss_scales={0: 1024.0, 1: 3.0, 2: 3.0, 4: 0.5}, infinite=(1,),
         missing=((0, 1), (3, 0)), steps=5),
    WholeSteps("maximize", _8 | {"maximize": True, "cautious": "mask"}),
    WholeSteps("learning rate, decay and betas on a schedule", _8,
         schedule={1: {"lr": 0.02}, 2: {"betas": (0.95, 0.98)}, 3: {"weight_decay": 0.0, "lr": 0.005}}),
    WholeSteps("what is not finite is skipped", _8 | {"cautious": "mask", "grad_clip": 0.5},
         (*_TRIO, ((9,), "float32", {"nonfinite": "raise"})), kinds=("notfinite", "normal", "huge")),
    WholeSteps("what is not finite is propagated", _4 | {"block_size": 32, "nonfinite": "propagate"},
         _TRIO, kinds=("normal", "notfinite", "normal")),
    WholeSteps("denormal and huge numbers", _8 | {"block_size": 32},
         (((1, 64), "float32", {}), ((40,), "float32", {"optim_bits": 32})), kinds=("tiny", "huge", "tiny", "edges")),
)  # fmt: skip


def steps() -> list[Case]:
    """Return every case, computed by the oracle."""
    return [_stepped(case) for case in WHOLE_STEPS]


def _stepped(case: WholeSteps) -> Case:
    draws = Draws(case.name)
    settings = [replace(Settings(), **_own(case.settings, more)) for _, _, more in case.params]
    params = [_array(draws, shape, dtype, "normal", 1) for shape, dtype, _ in case.params]
    before = [
        {"shape": p.shape, "dtype": p.dtype, "settings": _spelled(s), "bits": _bits(p)}
        for p, s in zip(params, settings, strict=True)
    ]
    oracle = OracleLion(params, settings)
    after = [_step(case, number, oracle, draws) for number in range(case.steps)]
    return {"name": case.name, "parameters": before, "steps": after}


def _own(settings: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return a group's settings over all parameters'; one with bits of its own inherits no format and no block size."""
    changed = "optim_bits" in more
    kept = {key: x for key, x in settings.items() if not (changed and key in {"state_format", "block_size"})}
    return kept | more


def _step(case: WholeSteps, number: int, oracle: OracleLion, draws: Draws) -> Case:
    changes = case.schedule.get(number, {})
    settings = [replace(s, **changes) for s in oracle.settings]
    kind = case.kinds[number % len(case.kinds)]
    grads = []
    for at in range(len(oracle.params)):
        dtype = case.grads[(number + at) % len(case.grads)]
        missing = (number, at) in case.missing
        grads.append(None if missing else _gradient(draws, oracle, at, dtype, kind, settings[at]))
    scale, found = case.loss_scales.get(number), number in case.infinite
    oracle.step(grads, scale, settings, found)
    after = [
        {"bits": _bits(p), "state": None if s is None else _state(s)}
        for p, s in zip(oracle.params, oracle.state, strict=True)
    ]
    return {
        "settings": _spelled_some(changes),
        "loss_scale": None if scale is None else single(of_float(scale)),
        "found_inf": found,
        "grads": [None if g is None else {"dtype": g.dtype, "bits": _bits(g)} for g in grads],
        "after": after,
        "skipped_elements": oracle.skipped,
        "raised": oracle.raised,
    }


def _array(draws: Draws, shape: tuple[int, ...], dtype: str, kind: str, power: int) -> Array:
    return Array(shape, dtype, [draws.pattern(kind, power, TYPES[dtype]) for _ in range(prod(shape))])


def _gradient(draws: Draws, oracle: OracleLion, at: int, dtype: str, kind: str, settings: Settings) -> Array:
    """Return values of a kind; gradients that cancel are drawn around the present momentum."""
    shape = oracle.params[at].shape
    if kind != "cancelling":
        return _array(draws, shape, dtype, kind, -draws.below(4))
    rates, binary = rates_of(settings), TYPES[dtype]
    wanted: list[Number] = [draws.cancelling(m, rates.b1, rates.one_minus_b1) for m in oracle.momentum(at)]
    return Array(shape, dtype, [binary.to_bits(binary.round(g)) for g in wanted])


def _bits(array: Array) -> str:
    binary = TYPES[array.dtype]
    return words((canonical(b, binary) for b in array.bits), binary.width)


def _state(state: State) -> Case:
    """Return a state's fields by name, without those that the settings do not ask for."""
    found: Case = {"step": state.step}
    for name in LISTS:
        values = getattr(state, name)
        if values is not None:
            found[name] = words(values, WIDTHS[name]) if name in WIDTHS else list(values)
    return found


def _spelled(settings: Settings) -> Case:
    return _spelled_some({f.name: getattr(settings, f.name) for f in fields(settings)})


def _spelled_some(settings: dict[str, Any]) -> Case:
    """Return settings with numbers as bit patterns; the seed, which may have 64 bits, in hexadecimal too."""
    found: Case = {}
    for name, value in settings.items():
        if name in DOUBLES:
            found[name] = double(value)
        elif name == "betas":
            found[name] = [double(b) for b in value]
        else:
            found[name] = f"{value:016x}" if name == "seed" else value
    return found
