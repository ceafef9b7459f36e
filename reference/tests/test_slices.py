"""Where a tensor is cut, and with which others it shares a call, changes no bit of it and nothing beside it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lionbits_reference import backend, slices
from lionbits_reference.spec import FLOAT32, Format, Hyper, Plan, Slot

from . import calls
from .calls import GradSlot, new_state, scalars
from .oracle import same_bits

SHAPES = [(), (0,), (1,), (31,), (64,), (1000,), (0, 5), (5, 0), (1, 300), (3, 37), (40, 33), (2, 257), (7, 64)]
SHAPES += [(3, 5, 7), (1, 9, 40), (4, 2, 3, 5), (2, 8, 4, 8), (0, 2, 3), (129, 2), (50, 7), (20, 1, 5, 5)]
FORMATS = [FLOAT32, Format.of(8, "e3m4", 32), Format.of(8, "e0m7", 32), Format.of(4, "e3m0", 64)]
FORMATS += [Format.of(4, "e0m3", 32), Format.of(2, "e0m1", 32)]
BLOCK_WISE = tuple(FORMATS)
FORMATS += [Format.of(8, block_wise=False), Format.of(4, block_wise=False)]


@dataclasses.dataclass
class Buffer:
    """A tensor of some layout, in the middle of a larger one whose other elements must not change."""

    whole: torch.Tensor
    view: torch.Tensor
    outside: torch.Tensor  # of ``whole``: whether it is no element of ``view``
    before: torch.Tensor

    @staticmethod
    def around(values: torch.Tensor, layout: str) -> Buffer:
        """Around the values, in ``"plain"`` order, ``"reversed"`` dimensions, ``"channels_last"`` or ``"spaced"``."""
        count = values.numel()
        places = torch.arange(2 * count + 40)
        order = list(range(values.dim()))
        if layout == "reversed":
            order.reverse()
        elif layout == "channels_last" and values.dim() == 4:
            order = [0, 2, 3, 1]
        stride = 2 if layout == "spaced" else 1
        block = places[20 : 20 + stride * count : stride].reshape([values.shape[d] for d in order])
        index = block.permute([order.index(d) for d in range(values.dim())])
        whole = torch.randint(-100, 100, places.shape, generator=torch.Generator().manual_seed(count)).to(values.dtype)
        view = whole.as_strided(values.shape, index.stride(), 20)
        view.copy_(values)
        outside = torch.ones(places.shape, dtype=torch.bool)
        outside[index.flatten()] = False
        return Buffer(whole, view, outside, whole.clone())

    def kept(self) -> bool:
        """Whether everything around the view is as it was."""
        return same_bits(self.whole[self.outside], self.before[self.outside])


@contextmanager
def sliced(limit: int) -> Iterator[None]:
    """Let the backend cut slots at another length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "cut", functools.partial(slices.cut, limit=limit))
        yield


@dataclasses.dataclass(frozen=True)
class Case:
    """A call to make in several ways."""

    shape: tuple[int, ...]
    plan: Plan
    rounding: str
    layouts: tuple[str, str]
    seed: int
    pitch: int | None = None

    def run(self, limit: int) -> tuple[list[torch.Tensor], list[Buffer]]:
        """Results and buffers of two steps on a slot of a canary buffer."""
        generator = torch.Generator().manual_seed(self.seed)
        param = Buffer.around(torch.randn(self.shape, generator=generator).to(self.plan.param_dtype), self.layouts[0])
        grads = [torch.randn(self.shape, generator=generator) for _ in range(2)]
        for grad in grads:
            grad.view(-1)[:: 1 + self.seed % 5] *= -0.0
            grad.view(-1)[self.seed % 11 :: 97] = torch.nan
        grads = [Buffer.around(grad.to(self.plan.grad_dtype), self.layouts[1]).view for grad in grads]
        state = {key: Buffer.around(value, "plain") for key, value in new_state(self.plan, self.shape).items()}
        views = {key: buffer.view for key, buffer in state.items()}
        hyper = Hyper.of((0.9, 0.99), self.seed, self.rounding)
        out: list[torch.Tensor] = []
        with sliced(limit):
            for step, grad in enumerate(grads, 1):
                slot = GradSlot(param.view, grad, views, 3, start=2**34 - 8 * (self.seed % 2), pitch=self.pitch)
                numbers = scalars([0.01], [0.999], [0.5], [step])
                largest = calls.absmax(self.plan, [slot], hyper, numbers)
                out += [largest, calls.aligned(self.plan, [slot], hyper, numbers)]
                absmax = largest if self.plan.format.tensor_wise else None
                numbers = dataclasses.replace(numbers, absmax=absmax)
                calls.step(self.plan, [slot], hyper, numbers)
                out.append(numbers.skipped)
                if absmax is not None:
                    views["exp_avg_scale"].copy_(absmax / self.plan.format.top)
            momentum = backend.decode(self.plan.format, views, self.shape)
            out += [momentum, *backend.encode(self.plan.format, momentum).values()]
        return [*out, param.view, *views.values()], [param, *state.values()]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Case, int]:
    """A call and a length to cut at: a multiple of the block, as ``cut`` asks for."""
    format = draw(st.sampled_from(FORMATS))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    modes = ["nearest", "dithered", "stochastic", "compensated"] if dtype == torch.bfloat16 else ["nearest"]
    param_rounding = draw(st.sampled_from(modes))
    plan = Plan(
        dtype,
        draw(st.sampled_from([torch.float32, torch.bfloat16])),
        format,
        draw(st.sampled_from(["none", "mask", "gradient"])),
        param_rounding,
        draw(st.sampled_from([32, 24])) if param_rounding == "compensated" else 32,
        draw(st.sampled_from(["skip", "propagate"])),
    )
    layouts = st.sampled_from(["plain", "reversed", "channels_last", "spaced"])
    rounding = draw(st.sampled_from(["dithered", "stochastic", "nearest"]))
    shape, seed = draw(st.sampled_from(SHAPES)), draw(st.integers(0, 10**6))
    narrow = 0 < math.prod(shape[1:]) < 32  # too narrow for codes where it is a rectangle
    pitch = draw(st.sampled_from([None] if narrow and format.quantised else [None, 2002]))
    case = Case(shape, plan, rounding, (draw(layouts), draw(layouts)), seed, pitch)
    return case, draw(st.integers(1, 8)) * max(format.block_size, 8)


@given(cases())
@settings(max_examples=250, deadline=None, derandomize=True)
def test_any_cut_gives_the_same_bits_and_touches_nothing_else(drawn: tuple[Case, int]) -> None:
    """Parameters, state, counts and maxima depend on neither cut nor strides; elements around the views stay."""
    case, limit = drawn
    whole, _ = dataclasses.replace(case, layouts=("plain", "plain")).run(1 << 40)
    cut, buffers = case.run(limit)
    assert len(whole) == len(cut)
    assert all(same_bits(a, b) for a, b in zip(whole, cut, strict=True))
    assert all(buffer.kept() for buffer in buffers)


@pytest.mark.parametrize("shape", [(700_001,), (3, 300_000), (5000, 130), (2, 512, 600)])
def test_tensors_longer_than_a_slice(shape: tuple[int, ...]) -> None:
    """The cuts of the backend give the bits of the tensor in one piece."""
    assert math.prod(shape) > slices.LIMIT
    for format, rounding in ((Format.of(8), "dithered"), (Format.of(4), "stochastic")):
        plan = Plan(torch.bfloat16, torch.bfloat16, format, param_rounding="dithered")
        case = Case(shape, plan, rounding, ("plain", "plain"), 7)
        whole, _ = case.run(1 << 40)
        cut, _ = case.run(slices.LIMIT)
        assert all(same_bits(a, b) for a, b in zip(whole, cut, strict=True))


@given(
    st.sampled_from([(64,), (3, 37), (40, 33), (7, 64), (3, 5, 7), (0, 5), (2, 1000), (300, 7), (64, 2, 3)]),
    st.sampled_from(FORMATS),
    st.data(),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_pieces_cover_the_slot_in_order(shape: tuple[int, ...], format: Format, data: st.DataObject) -> None:
    """Pieces are views, no longer than asked where they can be, and between them every element is there once."""
    limit = data.draw(st.integers(1, 8)) * max(format.block_size, 8)
    param = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    slot = Slot(param, new_state(Plan(torch.float32, torch.float32, format), shape), 5, start=100)
    pairs = list(slices.cut(slot, param.clone(), format, limit))
    assert all(torch.equal(piece.param, grad) for piece, grad in pairs)
    pieces = [piece for piece, _ in pairs]
    seen = [piece.param.flatten() for piece in pieces]
    assert torch.equal(torch.cat(seen) if seen else torch.empty(0), param.flatten())
    columns = math.prod(shape[1:]) if math.prod(shape[1:]) >= 32 and len(shape) > 1 else math.prod(shape)
    for piece in pieces:
        first = int(piece.param.flatten()[0])
        row, column = divmod(first, columns)
        assert piece.start == 100 + row * (columns + columns % 2) + column
        assert piece.start % 2 == 0
        assert piece.param.numel() <= limit
        assert piece.index == 5
        assert piece.param.data_ptr() == param.data_ptr() + 4 * first
        assert (piece.row_pitch == columns + columns % 2) or len(piece.param) == columns


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f"{f.name}-{f.block_size}")
def test_many_slots_in_one_call_are_as_many_calls(format: Format) -> None:
    """k slots with numbers of their own: parameters, state, counts and maxima as from k calls of one."""
    shapes = [(40,), (3, 37), (), (0, 5), (2, 64), (5, 0), (3, 4, 20)]
    plan = Plan(torch.bfloat16, torch.float32, format, caution="mask", param_rounding="stochastic")
    hyper = Hyper.of((0.9, 0.99), 5)
    k = len(shapes)
    rates, keeps, scales = [j / 10 for j in range(k)], [1 - j / 100 for j in range(k)], [1 - j / 3 for j in range(k)]
    numbers = scalars(rates, keeps, scales, list(range(9, 9 + k)))

    def fresh() -> list[GradSlot]:
        generator = torch.Generator().manual_seed(1)
        slots = []
        for j, shape in enumerate(shapes):
            param, grad = (torch.randn(shape, generator=generator) for _ in range(2))
            grad.view(-1)[3::10] = torch.inf
            slots.append(GradSlot(param.bfloat16(), grad, new_state(plan, shape), 10 - j))
        return slots

    together, single = fresh(), fresh()
    largest = calls.absmax(plan, together, hyper, numbers)
    counts = calls.aligned(plan, together, hyper, numbers)
    numbers = dataclasses.replace(numbers, absmax=largest)
    calls.step(plan, together, hyper, numbers)
    skipped = int(numbers.skipped)
    numbers.skipped.zero_()
    for j, slot in enumerate(single):
        part = numbers.part(slice(j, j + 1))
        assert calls.absmax(plan, [slot], hyper, part).tolist() == largest[j : j + 1].tolist()
        assert calls.aligned(plan, [slot], hyper, part).tolist() == counts[j : j + 1].tolist()
        calls.step(plan, [slot], hyper, part)
    assert int(numbers.skipped) == skipped > 0
    for a, b in zip(together, single, strict=True):
        assert same_bits(a.param, b.param)
        assert all(same_bits(a.state[key], b.state[key]) for key in a.state)


@pytest.mark.parametrize("format", BLOCK_WISE, ids=lambda f: f"{f.name}-{f.block_size}")
@pytest.mark.parametrize("cuts", [(0, 3, 9), (0, 0, 1, 9, 9), (0, 4, 5, 6, 9)])
def test_shards_of_rows_are_the_whole(format: Format, cuts: tuple[int, ...]) -> None:
    """Any split along the first dimension, uneven or empty, stepped with its start, equals the whole parameter."""
    generator = torch.Generator().manual_seed(2)
    plan = Plan(torch.bfloat16, torch.bfloat16, format, param_rounding="compensated", master_bits=24)
    hyper = Hyper.of((0.9, 0.99), 2**40 + 3)
    param = torch.randn(9, 75, generator=generator).bfloat16()
    state, shard_param = new_state(plan, param.shape), param.clone()
    shard_state = new_state(plan, param.shape)
    for step in range(1, 5):
        grad = torch.randn(9, 75, generator=generator).bfloat16()
        calls.step(plan, [GradSlot(param, grad, state, 1)], hyper, scalars([0.01], step=[step]))
        shards = []
        for first, last in itertools.pairwise(cuts):
            rows = {key: value[first:last].clone() for key, value in shard_state.items()}
            shards.append(GradSlot(shard_param[first:last].clone(), grad[first:last], rows, 1, first * 76))
        for shard in shards:
            assert {k: (v.shape, v.dtype) for k, v in shard.state.items()} == plan.state_spec(shard.param.shape)
            calls.step(plan, [shard], hyper, scalars([0.01], step=[step]))
        shard_param = torch.cat([shard.param for shard in shards])
        shard_state = {key: torch.cat([shard.state[key] for shard in shards]) for key in state}
        assert same_bits(shard_param, param)
        assert all(same_bits(shard_state[key], state[key]) for key in state)
