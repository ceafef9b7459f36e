"""The types: what a format is called and how large it is, what a plan holds, and numbers rounded once."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import lionbits_reference
from lionbits_reference import backend
from lionbits_reference.spec import (
    FLOAT32,
    FORMATS,
    MIN_COLUMNS,
    Format,
    Hyper,
    Plan,
    Slot,
    decay_factor,
    float32,
    matrix_shape,
)

from .calls import scalars
from .oracle import EVERY_FORMAT, NAMES, magnitudes, round32

each_format = pytest.mark.parametrize(("x", "y"), EVERY_FORMAT, ids=NAMES)


@each_format
def test_a_name_is_a_format(x: int, y: int) -> None:
    """eXmY by name has X exponent and Y mantissa bits, w = 23 - Y, and the magnitudes of the definition."""
    format = Format.of(1 + x + y, f"e{x}m{y}", 64)
    assert format == Format(1 + x + y, x, y, 64)
    assert (format.name, format.shift) == (f"e{x}m{y}", 23 - y)
    assert (format.largest_code, format.top) == (2 ** (x + y) - 1, float(magnitudes(x, y)[-1]))
    assert [Fraction(format.value(k)) for k in range(2 ** (x + y))] == magnitudes(x, y)
    assert format.quantised
    assert not format.tensor_wise
    assert len(set(magnitudes(x, y))) == 2 ** (x + y)
    assert magnitudes(x, y) == sorted(magnitudes(x, y))


def test_the_list_of_formats_has_every_one_once() -> None:
    """By width, the default first; the names are those that the definition, X <= 4, gives."""
    assert sorted(name for names in FORMATS.values() for name in names) == sorted(NAMES)
    assert all(Format.of(bits).name == names[0] for bits, names in FORMATS.items())
    assert all(Format.of(bits, name).name == name for bits, names in FORMATS.items() for name in names)


def test_why_there_is_no_fifth_exponent_bit() -> None:
    """Over the smallest absmax that has a scale ``top`` is a float32 in every format; it would not be with X = 5."""
    least = np.nextafter(np.float32(2.0**-100), np.float32(1))
    tops = [np.float32(Format.of(bits, name).top) for bits, names in FORMATS.items() for name in names]
    assert all(np.isfinite(top / least) for top in tops)
    with np.errstate(over="ignore"):
        assert np.isinf(np.float32(float(magnitudes(5, 2)[-1])) / least)


@pytest.mark.parametrize(("given", "said"), [((6, 3, 2), "bits=6 .* one of 32, 8, 4, 2"), ((8, 5, 2), "e3m4, e0m7")])
def test_a_format_that_there_is_not_is_refused(given: tuple[int, int, int], said: str) -> None:
    """Codes of 6 bits do not fill bytes, and e5m2 has no inverse of small blocks."""
    with pytest.raises(ValueError, match=said):
        Format(*given, 64)


def test_bits_alone_choose_format_and_block() -> None:
    """The table of defaults: e3m4 by 256, e3m0 by 128, e0m1 by 64, and their bytes per parameter."""
    chosen = {bits: Format.of(bits) for bits in (32, 8, 4, 2)}
    assert [(f.name, f.block_size) for f in chosen.values()] == [
        ("float32", 0),
        ("e3m4", 256),
        ("e3m0", 128),
        ("e0m1", 64),
    ]
    assert [f.bytes_per_element for f in chosen.values()] == [4.0, 1.015625, 0.53125, 0.3125]
    assert chosen[32] == FLOAT32
    assert not FLOAT32.quantised
    assert not FLOAT32.tensor_wise
    assert Format.of(8, block_wise=False) == Format(8, 3, 4, 0)
    assert Format.of(8, block_wise=False).tensor_wise


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), (1, 1)),
        ((7,), (1, 7)),
        ((0,), (1, 0)),
        ((3, 32), (3, 32)),
        ((3, 5, 7, 2), (3, 70)),
        ((0, 50), (0, 50)),
        ((3, 31), (1, 93)),  # fewer than 32 columns: one row
        ((4096, 8), (1, 32768)),  # LoRA's B
        ((1536, 1, 5, 5), (1, 38400)),  # a depthwise convolution
        ((1, 31), (1, 31)),
        ((0, 5), (1, 0)),
        ((5, 0), (1, 0)),
        ((0, 0, 3), (1, 0)),
    ],
)
def test_rows_are_the_first_dimension(shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    """rows = first dimension, columns = all the rest; below two dimensions, or 32 columns, one row of all elements."""
    assert matrix_shape(shape) == expected


def test_a_rectangle_with_a_pitch_has_the_rows_that_it_has() -> None:
    """Columns of a shard, however few, are columns; without a pitch they are joined as the whole parameter's."""
    part = torch.zeros(6, 2, 5)
    assert Slot(part, {}, 0, pitch=100).matrix == (6, 10)
    assert Slot(part, {}, 0).matrix == (1, 60)
    assert Slot(torch.zeros(6, 40), {}, 0).matrix == Slot(torch.zeros(6, 40), {}, 0, pitch=100).matrix == (6, 40)
    assert Slot(torch.zeros(5), {}, 0, pitch=100).matrix == Slot(torch.zeros(5), {}, 0).matrix == (1, 5)


@pytest.mark.parametrize(
    ("shape", "minimum", "quantised"),
    [
        ((64, 64), 4096, True),
        ((64, 63), 4096, False),  # 4,032 elements
        ((4096,), 4096, True),
        ((4095,), 4096, False),
        ((200, 31), 1, True),  # one row of 6,200
        ((4, 31), 124, True),
        ((1, 31), 1, False),  # one row of 31
        ((31, 1), 1, False),
        ((2, 16), 1, True),
        ((200, 32), 1, True),
        ((1, 32), 32, True),
        ((1, 32), 33, False),
        ((), 1, False),
        ((100000, 4, 7), 1, True),
        ((1000, 4, 8), 1, True),
    ],
)
def test_what_is_worth_quantising(shape: tuple[int, ...], minimum: int, quantised: bool) -> None:
    """A parameter is quantised where it has min_8bit_size elements and 32 at least."""
    assert MIN_COLUMNS == 32
    for bits in (8, 4, 2):
        assert Format.of(bits).for_parameter(shape, minimum).quantised == quantised
    assert Format.of(32).for_parameter(shape, minimum) == FLOAT32


@pytest.mark.parametrize(
    ("bits", "shape", "codes", "scales"),
    [
        (8, (3, 5, 7), (3, 5, 7), (3, 1)),
        (8, (300,), (300,), (1, 2)),
        (8, (), (), (1, 1)),
        (4, (3, 5, 7), (3, 18), (3, 1)),
        (4, (300,), (1, 150), (1, 3)),
        (2, (3, 37), (3, 10), (3, 1)),
        (2, (2, 65), (2, 17), (2, 2)),
        (8, (0, 40), (0, 40), (0, 1)),
        (4, (40, 0), (1, 0), (1, 0)),
        (8, (4096, 8), (4096, 8), (1, 128)),
        (4, (1536, 1, 5, 5), (1, 19200), (1, 300)),
        (2, (5, 13), (1, 17), (1, 2)),
    ],
)
def test_names_shapes_and_types_of_state(bits: int, shape: tuple[int, ...], codes: object, scales: object) -> None:
    """8-bit codes have the parameter's shape, narrower ones (rows, bytes); scales are (rows, blocks)."""
    spec = Plan(torch.bfloat16, torch.float32, Format.of(bits)).state_spec(shape)
    assert {key: tuple(value) for key, value in spec.items()} == {
        "exp_avg_codes": (codes, torch.uint8),
        "exp_avg_scale": (scales, torch.float32),
    }
    wise = Plan(torch.float32, torch.float32, Format.of(bits, block_wise=False)).state_spec(shape)
    assert wise["exp_avg_scale"] == ((1, 1), torch.float32)


@pytest.mark.parametrize(("master_bits", "dtype"), [(32, torch.int16), (24, torch.int8)])
def test_a_compensated_parameter_has_a_rest(master_bits: int, dtype: torch.dtype) -> None:
    """param_residual has the parameter's shape, 2 or 1 bytes an element; other roundings keep none."""
    plan = Plan(torch.bfloat16, torch.bfloat16, FLOAT32, param_rounding="compensated", master_bits=master_bits)
    assert plan.state_spec((2, 3)) == {"exp_avg": ((2, 3), torch.float32), "param_residual": ((2, 3), dtype)}
    for other in ("nearest", "dithered", "stochastic"):
        assert list(Plan(torch.bfloat16, torch.bfloat16, FLOAT32, param_rounding=other).state_spec((2, 3))) == [
            "exp_avg"
        ]


def test_plans_are_values() -> None:
    """Frozen and hashable: equal plans share a launch."""
    one, two = (Plan(torch.float32, torch.bfloat16, Format.of(8), caution="mask") for _ in range(2))
    assert one == two
    assert len({one, two, Plan(torch.float32, torch.bfloat16, Format.of(4), caution="mask")}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.caution = "none"  # type: ignore[misc]


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.95, 0.98), (0.0, 0.0), (1 - 2**-20, 1 / 3), (0.1, 1e-9)])
def test_betas_are_rounded_once(betas: tuple[float, float]) -> None:
    """b and 1-b become binary32 once; the difference is formed in binary64 first, not from the rounded b."""
    hyper = Hyper.of(betas, 2**64 - 1, "nearest")
    assert (hyper.b1, hyper.b2) == tuple(round32(Fraction(b)) for b in betas)
    assert (hyper.one_minus_b1, hyper.one_minus_b2) == tuple(round32(Fraction(1 - b)) for b in betas)
    assert (hyper.seed, hyper.rounding) == (2**64 - 1, "nearest")


def test_the_difference_is_not_taken_in_binary32() -> None:
    """1 - 0.9 in binary64 rounds to another float32 than 1 - float32(0.9) is."""
    assert Hyper.of((0.9, 0.99)).one_minus_b1 != float(np.float32(1) - np.float32(0.9))


def test_float32_rounds_to_nearest_even() -> None:
    """On random doubles of all sizes, ties, subnormals and what overflows."""
    rng = np.random.default_rng(0)
    doubles = (rng.standard_normal(3000) * 2.0 ** rng.integers(-155, 130, 3000)).tolist()
    doubles += [1 + 2**-24, 1 + 3 * 2**-24, 2.0**-150, 3 * 2.0**-150, 2.0**128 - 2.0**103, 0.0]
    assert [float32(v) for v in doubles] == [round32(Fraction(v)) for v in doubles]
    assert math.copysign(1, float32(-0.0)) == -1


def test_decay_is_formed_in_binary32() -> None:
    """keep = 1 - lr*wd, two roundings, on the host and, for a tensor learning rate, on its device: the same bits."""
    rng = np.random.default_rng(1)
    for lr, wd in [(1e-4, 0.1), (0.0, 1.0), (1.0, 1.0), (3e-9, 0.5), *(10.0 ** rng.uniform(-9, 1, (500, 2))).tolist()]:
        product = round32(Fraction(round32(Fraction(lr))) * Fraction(round32(Fraction(wd))))
        expected = round32(1 - Fraction(product))
        assert decay_factor(lr, wd) == expected
        for dtype in (torch.float32, torch.float64):
            keep = decay_factor(torch.tensor([lr], dtype=dtype), wd)
            assert keep.dtype == torch.float32
            assert keep.shape == ()
            assert keep.item() == expected


def test_a_slots_pitch_is_even() -> None:
    """By default rows lie even(columns) counting positions apart, so that no pair is in two rows."""
    for shape, pitch in (((3, 7), 22), ((3, 37), 38), ((3, 38), 38), ((5,), 6), ((), 2), ((2, 3, 15), 46), ((4, 0), 0)):
        tensor = torch.zeros(shape)
        assert Slot(tensor, {}, 0).row_pitch == pitch
        assert Slot(tensor, {}, 0, pitch=100).row_pitch == 100


def test_numbers_of_a_run_of_slots_are_views() -> None:
    """``part`` cuts every number alike and counts into the same place."""
    numbers = dataclasses.replace(scalars([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]), absmax=torch.arange(3.0))
    part = numbers.part(slice(1, 3))
    assert (part.lr.tolist(), part.keep.tolist()) == ([2.0, 3.0], [5.0, 6.0])
    assert part.skipped is numbers.skipped
    assert part.absmax is not None
    assert part.absmax.tolist() == [1.0, 2.0]
    part.lr[0] = 7.0
    assert numbers.lr.tolist() == [1.0, 7.0, 3.0]


def test_the_package_is_the_backend() -> None:
    """``lionbits_reference`` has the protocol's names and serves every plan where numbers are."""
    for name in ("supports", "aligned", "absmax", "step", "encode", "decode", "name"):
        assert getattr(lionbits_reference, name) is getattr(backend, name)
    assert lionbits_reference.name == "reference"
    plan = Plan(torch.float32, torch.float32, Format.of(8))
    assert lionbits_reference.supports(plan, torch.device("cpu")) == ""
    assert lionbits_reference.supports(plan, torch.device("meta"))
