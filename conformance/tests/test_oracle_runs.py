"""The real optimizer, on the backend ``reference``, equals the oracle bit for bit, whatever is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import lionbits
from lionbits_conformance.oracle import formats
from lionbits_conformance.oracle.differential import Gradient, StepInput, replay
from lionbits_conformance.oracle.floats import exact

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
    """An input of ``replay``, with draws in place of gradients."""

    grads: tuple[Draw | None, ...]
    settings: dict[str, Any]
    loss_scale: float | None
    found_inf: bool


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


def momentum_settings() -> st.SearchStrategy[dict[str, Any]]:
    """Settings of the momentum: width, format, blocks."""

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


@st.composite
def runs(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]], list[tuple[Any, ...]], list[Step]]:
    """(keyword arguments, groups, parameters, steps)."""
    kwargs = draw(st.fixed_dictionaries({}, optional=OPTIONS)) | draw(momentum_settings())
    kwargs["seed"] = draw(st.sampled_from([0, 1, 2**32 + 7, 2**64 - 1]))
    kwargs["min_8bit_size"] = draw(st.sampled_from([1, 1, 1, 1, 100, 4096]))
    params, groups = [], []
    for _ in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(DTYPES))
        kind = draw(st.sampled_from(["normal", "zeros", "ties", "huge", "tiny", "nonfinite"]))
        value = Draw(kind, draw(st.integers(-8, 4)), draw(st.integers(0, 99)), dtype, draw(st.booleans()))
        params.append((draw(st.sampled_from(SHAPES)), value))
        group = {key: draw(OPTIONS[key]) for key in draw(st.sets(st.sampled_from(sorted(OPTIONS)), max_size=4))}
        if draw(st.integers(0, 3)) == 0:
            group |= draw(momentum_settings())
        unbiased = ["compensated", "dithered", "stochastic", "nearest"] if dtype != torch.float16 else ["nearest"]
        group["param_rounding"] = draw(st.sampled_from(unbiased))
        groups.append(group)
    return kwargs, groups, params, [draw(steps(len(params))) for _ in range(draw(st.sampled_from([3, 1, 2, 4, 5, 6])))]


def steps(count: int) -> st.SearchStrategy[Step]:
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
    )


@settings(max_examples=200, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(runs())
def test_the_optimizer_is_what_the_oracle_says(run: Any) -> None:
    kwargs, groups, drawn, steps = run
    params = []
    for shape, draw in drawn:
        value = numbers(draw, shape)
        assert isinstance(value, Tensor)
        params.append(value)
    betas = kwargs.get("betas", (0.9, 0.99))
    inputs = []
    for step in steps:
        grads: list[Gradient] = []
        for at, g in enumerate(step.grads):
            own = step.settings.get("betas", groups[at].get("betas", betas))
            grads.append(None if g is None else numbers(g, drawn[at][0], own))
        inputs.append(StepInput(grads, step.settings, step.loss_scale, step.found_inf))
    found = replay(lionbits.Lion, {**kwargs, "backend": "reference"}, params, inputs, groups)
    assert found is None, str(found)
