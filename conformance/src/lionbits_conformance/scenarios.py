"""Scenarios of an optimizer beside the oracle, which shares no code with it: what is drawn of them.

A scenario has parameters in groups of different settings, some of them frozen, and steps before which settings change,
gradients are missing, a loss scale is set; behind a step the optimizer may be saved, copied, paged or moved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from . import bits
from .oracle import events, formats
from .oracle.differential import Difference, Gradient, StepInput, replay
from .oracle.floats import exact

WIDE = [(3, 37), (2, 64), (4, 32), (1, 33), (70,), (2, 3, 16), (2, 1, 131), (2, 3, 4, 4), (300,)]  # worth quantising
SHAPES = [*WIDE, *WIDE, (5,), (), (0, 4), (4, 5), (0,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS = ["normal", "cancelling", "ties", "zeros", "tiny", "huge", "nonfinite"]
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Draw:
    """A tensor of values by a few numbers, which is what a failure prints."""

    kind: str
    magnitude: int
    seed: int
    dtype: torch.dtype
    turned: bool  # strides that are not those of logical order, where there are at least two dimensions


@dataclass(frozen=True)
class Step:
    """A turn of ``replay``, with draws in place of gradients."""

    grads: tuple[Draw | None, ...]
    settings: dict[str, Any]
    loss_scale: float | None = None
    found_inf: bool = False
    event: str = ""


@dataclass(frozen=True)
class Scenario:
    """An optimizer over some parameters, each in a group of its own, and its steps.

    Attributes:
        kwargs: of the optimizer.
        groups: settings of each parameter.
        params: shape and values of each.
        steps: in their order.
        frozen: parameters that do not require a gradient, and have none.
    """

    kwargs: dict[str, Any]
    groups: list[dict[str, Any]]
    params: list[tuple[tuple[int, ...], Draw]]
    steps: list[Step]
    frozen: frozenset[int] = frozenset()


def scenario_agrees(lion: Callable[..., Any], backend: Any, scenario: Scenario) -> None:
    """After every step of a scenario the optimizer holds the oracle's bits, and raises where that says so.

    A backend that is given as a module, not by its name, is spared the events.

    Raises:
        Disagreement: with the first difference, and the scenario.
    """
    difference = _difference(lion, backend, scenario)
    if difference is not None:
        raise bits.Disagreement(f"{difference}\n  in {scenario}")


def _difference(lion: Callable[..., Any], backend: Any, scenario: Scenario) -> Difference | None:
    params = []
    for shape, draw in scenario.params:
        value = numbers(draw, shape)
        assert isinstance(value, Tensor)
        params.append(value)
    betas = scenario.kwargs.get("betas", (0.9, 0.99))
    turns = []
    for step in scenario.steps:
        event = step.event if isinstance(backend, str) else ""  # copies find their backend by its name
        grads: list[Gradient] = []
        for at, g in enumerate(step.grads):
            own = step.settings.get("betas", scenario.groups[at].get("betas", betas))
            grads.append(None if g is None or at in scenario.frozen else numbers(g, scenario.params[at][0], own))
        turns.append(StepInput(grads, step.settings, step.loss_scale, step.found_inf, event))
    return replay(lion, {**scenario.kwargs, "backend": backend}, params, turns, scenario.groups, scenario.frozen)


def numbers(draw: Draw, shape: tuple[int, ...], betas: tuple[float, float] = (0.9, 0.99)) -> Gradient:
    """The values that a draw stands for."""
    generator = torch.Generator().manual_seed(draw.seed)
    x = torch.randn(shape, generator=generator)
    roll = torch.randint(0, 100, shape, generator=generator)
    scale = 2.0**draw.magnitude
    if draw.kind == "cancelling":
        return cancelling(x, roll, draw, betas)
    if draw.kind == "ties":
        x = midpoints(roll, draw.seed) * x.sign() * scale
        near = (x.view(torch.int32) + (roll % 5 - 2).to(torch.int32)).view(torch.float32)
        x = torch.where((roll % 3 == 0) & (x != 0), near, x)
    elif draw.kind == "zeros":
        x = torch.where(roll < 60, 0.0, x.abs() * scale) * x.sign()
    elif draw.kind == "tiny":
        x = x * 2.0**-138
    elif draw.kind == "huge":
        x = (x * 2.0**125).clamp(-LARGEST, LARGEST)
    else:
        x = x * scale
    if draw.kind == "nonfinite":
        for at, bad in ((roll < 6, torch.nan), (roll == 7, torch.inf), (roll == 8, -torch.inf), (roll == 9, LARGEST)):
            x = torch.where(at, bad, x)
    return laid_out(x.to(draw.dtype), draw.turned)


def laid_out(x: Tensor, turned: bool) -> Tensor:
    """The same values with other strides: columns first, or channels last."""
    if not turned or x.dim() < 2:
        return x
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.mT.contiguous().mT


def midpoints(roll: Tensor, seed: int) -> Tensor:
    """Code values of a format and midpoints between them, often its largest, so that block scales are powers of two."""
    form = formats.StateFormat.named(("e3m4", "e3m0", "e0m3", "e0m7", "e0m1")[seed % 5])
    values = torch.tensor([float(exact(form.value(k))) for k in range(form.largest + 1)])
    both = torch.cat((values, (values[1:] + values[:-1]) / 2, values[-1:].expand(20)))
    return both[(roll * 2654435761) % len(both)]


def cancelling(x: Tensor, roll: Tensor, draw: Draw, betas: tuple[float, float]) -> Callable[[Tensor], Tensor]:
    """Gradients g with m*b1 + g*(1-b1) next to 0: the nearest, or one or two units of the last place off."""

    def gradient(m: Tensor) -> Tensor:
        near = -(m * betas[0]) / (1 - betas[0])
        off = (near.view(torch.int32) + (roll % 5 - 2).to(torch.int32)).view(torch.float32)
        mixed = torch.where((m == 0) | ~off.isfinite() | (roll > 90), x * 2.0**draw.magnitude, off)
        return laid_out(mixed.to(draw.dtype), draw.turned)

    return gradient


def arrangements() -> st.SearchStrategy[dict[str, Any]]:
    """How momentum is held: width, format, blocks."""

    def named(bits: int, name: str | None, block: int | None) -> dict[str, Any]:
        chosen = {"optim_bits": bits, "state_format": name, "block_size": block, "block_wise": block != 0}
        return chosen | ({"block_size": None} if block == 0 else {})

    def of_width(bits: int) -> st.SearchStrategy[dict[str, Any]]:
        names = [None] + [n for n in formats.NAMES if formats.StateFormat.named(n).bits == bits]
        return st.builds(named, st.just(bits), st.sampled_from(names), st.sampled_from([32, 64, 128, 256, None, 0]))

    return st.sampled_from([8, 4, 2, 8, 4, 32]).flatmap(of_width)


BETAS = st.sampled_from([(0.9, 0.99), (0.95, 0.98), (0.5, 0.5), (0.0, 0.99), (0.9, 0.0), (0.3, 1 - 2**-53)])
RATES = st.sampled_from([1e-4, 0.0, 3e-3, 0.1, 1.0, 1e-42, 3e38, torch.tensor(0.01), torch.tensor(3e-5).double()])
DECAYS = st.sampled_from([0.0, 0.1, 1.0, 30.0, 1e-30])

OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "lr": RATES,
    "betas": BETAS,
    "weight_decay": DECAYS,
    "percentile_clipping": st.sampled_from([100, 100, 1, 5, 50, 99]),
    "rounding": st.sampled_from(["dithered", "stochastic", "nearest"]),
    "cautious": st.sampled_from([None, None, "mask", "c-optim", "timm", "gradient"]),
    "grad_clip": st.sampled_from([0.0, 0.0, 1.0, 0.37, 1e-3, 1e30]),
    "master_bits": st.sampled_from([32, 24]),
    "nonfinite": st.sampled_from(["skip", "raise", "propagate"]),
    "maximize": st.booleans(),
}


SEEDS = st.sampled_from([0, 1, 2**32 + 7, 2**64 - 1])


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Any scenario of one to three parameters, whose groups may differ in everything."""
    kwargs = draw(st.fixed_dictionaries({}, optional=OPTIONS)) | draw(arrangements())
    kwargs["seed"] = draw(SEEDS)
    kwargs["min_8bit_size"] = draw(st.sampled_from([1, 1, 1, 1, 100, 4096]))
    params, groups = [], []
    for _ in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(DTYPES))
        kind = draw(st.sampled_from(["normal", "zeros", "ties", "huge", "tiny", "nonfinite"]))
        value = Draw(kind, draw(st.integers(-8, 4)), draw(st.integers(0, 99)), dtype, draw(st.booleans()))
        params.append((draw(st.sampled_from(SHAPES)), value))
        group = {key: draw(OPTIONS[key]) for key in draw(st.sets(st.sampled_from(sorted(OPTIONS)), max_size=4))}
        if draw(st.integers(0, 3)) == 0:
            group |= draw(arrangements())
        unbiased = ["compensated", "dithered", "stochastic", "nearest"] if dtype != torch.float16 else ["nearest"]
        group["param_rounding"] = draw(st.sampled_from(unbiased))
        groups.append(group)
    steps = [draw(turns(len(params))) for _ in range(draw(st.sampled_from([3, 1, 2, 4, 5, 6])))]
    if any(some.get("nonfinite") == "propagate" for some in (kwargs, *groups, *(step.settings for step in steps))):
        # What is not finite and was saved under another policy is refused when it is loaded.
        steps = [replace(step, event="moved" if step.event in ("saved", "paged") else step.event) for step in steps]
    return Scenario(kwargs, groups, params, steps, draw(some_frozen(len(params))))


def turns(count: int) -> st.SearchStrategy[Step]:
    """Steps for ``count`` parameters: some without gradient, some with new settings (those that state allows)."""
    kinds, dtypes = st.sampled_from(KINDS), st.sampled_from(DTYPES)
    grads = st.builds(Draw, kinds, st.integers(-20, 8), st.integers(0, 999), dtypes, st.booleans())
    rates = st.fixed_dictionaries({}, optional={"lr": RATES, "betas": BETAS, "weight_decay": DECAYS})
    others = st.fixed_dictionaries({}, optional={k: v for k, v in OPTIONS.items() if k != "master_bits"})
    return st.builds(
        Step,
        st.tuples(*[st.one_of(grads, grads, grads, st.none())] * count),
        st.one_of(st.just({}), rates, others),
        st.sampled_from([None, None, None, 65536.0, 3.0, 2.0**-10]),
        st.sampled_from([False] * 9 + [True]),
        st.sampled_from([""] * 9 + sorted(events.EVENTS)),
    )


#: How groups of one launch are clipped, those that are not first.
CLIPPED: tuple[dict[str, Any], ...] = (
    *({}, {"percentile_clipping": 5}, {"grad_clip": 0.37}, {"percentile_clipping": 50, "grad_clip": 1.0}),
    *({}, {"grad_clip": 1e-3}),
)
SETTINGS = {
    "lr": st.sampled_from([1e-3, 0.1, 0.0, 0.3]),
    "weight_decay": st.sampled_from([0.0, 0.1, 1.0]),
    "maximize": st.booleans(),
}
MASKS = [(None,), ("mask", "c-optim", "timm"), ("gradient",)]
POLICIES = [("skip",), ("skip", "raise"), ("propagate",)]


@st.composite
def launches(draw: st.DrawFn) -> Scenario:
    """Two to four parameters that are updated together, by groups that differ in what one launch may have of several.

    Between steps one setting changes at a time, and may change back. Some groups differ in what parts launches, too.
    """
    dtype, shapes = draw(st.sampled_from(DTYPES)), draw(st.lists(st.sampled_from(WIDE), min_size=2, max_size=4))
    kwargs = {**draw(arrangements()), "min_8bit_size": 1, "seed": draw(SEEDS), "lr": 0.01, "betas": draw(BETAS)}
    own = SETTINGS | {"cautious": st.sampled_from(draw(st.sampled_from(MASKS)))}
    own |= {"nonfinite": st.sampled_from(draw(st.sampled_from(POLICIES)))}
    apart = {"rounding": OPTIONS["rounding"], "betas": BETAS}
    held = _in_place if draw(st.booleans()) else dict
    groups = [held(draw(st.fixed_dictionaries(own)) | draw(st.sampled_from(CLIPPED))) for _ in shapes]
    if draw(st.booleans()):
        key = draw(st.sampled_from(sorted(apart)))
        groups[-1] |= held({key: draw(apart[key])})
    changes = (
        SETTINGS
        | apart
        | {"seed": SEEDS}
        | {key: OPTIONS[key] for key in ("cautious", "percentile_clipping", "grad_clip", "nonfinite")}
    )
    if dtype == torch.bfloat16:
        changes |= {"param_rounding": st.sampled_from(["nearest", "dithered", "stochastic"])}
        kwargs["param_rounding"] = draw(changes["param_rounding"])
    steps = [draw(_step(len(shapes), dtype, {}))]
    for _ in range(draw(st.integers(1, 4))):
        key = draw(st.sampled_from([*sorted(changes), "betas", "lr"]))
        first, again = draw(changes[key]), draw(changes[key])
        steps += [
            draw(_step(len(shapes), dtype, held({key: value})))
            for value in (first, again, first)[: draw(st.integers(1, 3))]
        ]
    params = [(shape, Draw("normal", 0, at, dtype, False)) for at, shape in enumerate(shapes)]
    return Scenario(held(kwargs), groups, params, steps, draw(some_frozen(len(params))))


def _in_place(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, those as objects that may change in place and that are the same objects afterwards."""
    objects: dict[str, Callable[[Any], Any]] = {"lr": torch.tensor, "betas": list}
    return {key: objects[key](value) if key in objects else value for key, value in settings.items()}


def _step(count: int, dtype: torch.dtype, settings: dict[str, Any]) -> st.SearchStrategy[Step]:
    """A step of a launch: most gradients are there, some scaled."""
    kinds = st.sampled_from([*["normal"] * 4, "cancelling", "nonfinite"])
    grads = st.builds(Draw, kinds, st.integers(-6, 6), st.integers(0, 999), st.just(dtype), st.just(False))
    scales = st.sampled_from([None, None, 65536.0, 32768.0, 3.0, 12345.0, 2.0**-10])
    return st.builds(Step, st.tuples(*[st.one_of(*[grads] * 7, st.none())] * count), st.just(settings), scales)


@st.composite
def long_scenarios(draw: st.DrawFn) -> Scenario:
    """More steps of one small parameter than percentile clipping remembers norms of."""
    settings = {
        "percentile_clipping": draw(st.sampled_from([1, 5, 50, 99])),
        "grad_clip": draw(st.sampled_from([0.0, 1.0])),
    }
    kwargs = {"lr": 0.01, "optim_bits": 8, "min_8bit_size": 1, **settings}
    kind, scale = draw(st.sampled_from(["normal", "ties"])), draw(st.sampled_from([None, 1024.0]))
    seed, late = draw(st.integers(0, 999)), draw(st.sampled_from([0, 1, 60]))
    steps = [
        Step(
            (
                Draw(kind, (7 * i) % 5, seed + i, torch.float32, False),
                None if i < late else Draw(kind, i % 3, i, torch.float32, False),
            ),
            {},
            scale,
        )
        for i in range(draw(st.integers(102, 130)))
    ]
    return Scenario(
        kwargs, [{}, {}], [(shape, Draw("normal", 0, 1, torch.float32, False)) for shape in ((2,), (1, 3))], steps
    )


def some_frozen(count: int) -> st.SearchStrategy[frozenset[int]]:
    """None of the parameters, or some but the last."""
    none: st.SearchStrategy[frozenset[int]] = st.just(frozenset())
    return st.one_of(none, none, st.frozensets(st.integers(0, count - 2), min_size=1)) if count > 1 else none
