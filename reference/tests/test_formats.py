"""State formats: what a code means, where its scale comes from, how codes are packed and blocks are cut."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lionbits_reference import backend, formats
from lionbits_reference.spec import Format

from .oracle import (
    EVERY_FORMAT,
    FLT_MAX,
    NAMES,
    bits_of,
    encode_magnitudes,
    exact_t,
    from_bits,
    magnitude,
    magnitudes,
    pack,
    round32,
    same_bits,
    tensor,
)

each_format = pytest.mark.parametrize(("x", "y"), EVERY_FORMAT, ids=NAMES)


def block(x: int, y: int, size: int = 32) -> Format:
    """The format under test, in blocks of ``size``; 0: one scale for the tensor."""
    return Format(1 + x + y, x, y, size)


def test_there_are_eleven_formats() -> None:
    """The list that these tests walk is every eXmY of 2, 4 and 8 bits with X <= 4."""
    assert NAMES == ["e0m7", "e1m6", "e2m5", "e3m4", "e4m3", "e0m3", "e1m2", "e2m1", "e3m0", "e0m1", "e1m0"]


@each_format
@pytest.mark.parametrize("scale", [1.0, from_bits(0x3EAAAAAB), 2.0**-100, from_bits(0x0D123457), 2.0**111])
def test_every_code_means_its_exact_value(x: int, y: int, scale: float) -> None:
    """decode gives sign * value(k) * scale, the exact product rounded to binary32 once, for every code."""
    format = block(x, y)
    half = 2 ** (format.bits - 1)
    codes = list(range(2 * half))
    packed = torch.tensor([pack(codes, format.bits)], dtype=torch.uint8)
    scales = torch.full((1, format.blocks(len(codes))), scale)
    decoded = formats.decode(packed, scales, len(codes), format)[0]
    for code in codes:
        value = magnitude(x, y, code % half) * Fraction(scale)
        expected = round32(value) if code < half else -round32(value)
        assert bits_of(decoded[code].item()) == bits_of(expected), (code, decoded[code].item(), expected)


def test_values_written_out() -> None:
    """A few magnitudes of the default formats, by hand."""
    assert [float(v) for v in magnitudes(3, 0)] == [0, 2, 4, 8, 16, 32, 64, 128]
    assert [float(v) for v in magnitudes(0, 1)] == [0, 1]
    assert [float(v) for v in magnitudes(0, 3)] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]
    assert [float(v) for v in magnitudes(3, 4)[:18]] == [j / 8 for j in range(16)] + [2, 2.125]
    assert float(magnitudes(3, 4)[-1]) == 248
    row = torch.tensor([[8, 1, 0, 9, 7, 15]], dtype=torch.uint8)  # e3m0 in nibbles: sign bit 8
    packed = row[:, 0::2] | row[:, 1::2] << 4
    assert formats.decode(packed, torch.ones(1, 1), 6, block(3, 0)).tolist() == [[-0.0, 2, 0, -2, 128, -128]]


@pytest.mark.parametrize(
    ("x", "y", "values", "expected"),
    [
        (3, 0, [2.0, -4.0, 0.0, 8.0, -128.0], [0xA1, 0x30, 0x0F]),  # 1, 8+2, 0, 3, 8+7
        (0, 1, [1.0, 0.0, -1.0, 1.0, -1.0], [0b01_11_00_01, 0b11]),
        (1, 0, [2.0, -2.0, 0.0], [0b00_11_01]),
        (3, 4, [248.0, -0.125, 0.0], [0x7F, 0x81, 0x00]),
    ],
)
def test_element_0_lies_in_the_lowest_bits(x: int, y: int, values: list[float], expected: list[int]) -> None:
    """Codes are packed within the row from the lowest bits up; the last byte is filled with zeros."""
    state = backend.encode(block(x, y), torch.tensor(values))
    assert state["exp_avg_codes"].flatten().tolist() == expected
    assert state["exp_avg_scale"].tolist() == [[1.0]]


@each_format
@pytest.mark.parametrize(
    ("rows", "columns", "size"), [(1, 1, 32), (1, 93, 32), (3, 32, 64), (4, 33, 32), (2, 200, 64), (5, 128, 128)]
)
def test_blocks_run_along_a_row_and_never_cross_it(x: int, y: int, rows: int, columns: int, size: int) -> None:
    """One scale per run of ``size`` elements of a row, from that run's absmax alone; the last may be short."""
    format = block(x, y, size)
    top = np.float32(float(magnitude(x, y, 2 ** (x + y) - 1)))
    rng = np.random.default_rng(rows * 1000 + columns)
    m = (rng.standard_normal((rows, columns)) * 2.0 ** rng.integers(-30, 30, (rows, columns))).astype(np.float32)
    state = backend.encode(format, tensor(m))
    assert state["exp_avg_codes"].shape == (rows, -(-columns * format.bits // 8))
    assert state["exp_avg_scale"].shape == (rows, -(-columns // size))
    for row in range(rows):
        codes: list[int] = []
        for b, first in enumerate(range(0, columns, size)):
            run = m[row, first : first + size]
            absmax = np.abs(run).max()
            assert state["exp_avg_scale"][row, b].item() == absmax / top
            scaled = (np.abs(run) * (top / absmax)).view(np.int32).astype(np.int64)
            k = encode_magnitudes(x, y, exact_t(scaled), 0x8000)
            codes += (k + ((run < 0) & (k > 0)) * 2 ** (format.bits - 1)).tolist()
        assert state["exp_avg_codes"][row].tolist() == pack(codes, format.bits)


@each_format
@pytest.mark.parametrize(
    ("shape", "size"), [((65, 2), 32), ((3, 31), 32), ((20, 8), 32), ((9, 1, 5, 5), 64), ((33, 3, 4), 128)]
)
@pytest.mark.parametrize("strides", ["row-major", "reversed"])
def test_short_rows_are_one_row(x: int, y: int, shape: tuple[int, ...], size: int, strides: str) -> None:
    """A parameter of fewer than 32 columns has the codes and scales of a vector of its elements in row-major order."""
    format = block(x, y, size)
    generator = torch.Generator().manual_seed(math.prod(shape))
    m = torch.randn(shape, generator=generator) * 2.0 ** torch.randint(-30, 30, shape, generator=generator)
    if strides == "reversed":
        m = m.permute(*reversed(range(m.dim()))).contiguous().permute(*reversed(range(m.dim())))
    state, flat = backend.encode(format, m), backend.encode(format, m.flatten())
    assert torch.equal(state["exp_avg_codes"].flatten(), flat["exp_avg_codes"].flatten())
    assert torch.equal(state["exp_avg_scale"], flat["exp_avg_scale"])
    assert state["exp_avg_scale"].shape == (1, -(-m.numel() // size))
    assert torch.equal(backend.decode(format, state, shape), backend.decode(format, flat, (m.numel(),)).view(shape))


@each_format
def test_a_neighbouring_block_or_row_does_not_matter(x: int, y: int) -> None:
    """Multiplying one block by 1000 changes that block's scale and no other scale or code."""
    m = torch.randn(3, 96, generator=torch.Generator().manual_seed(1))
    louder = m.clone()
    louder[1, 32:64] *= 1000.0
    before, after = (backend.encode(block(x, y), v) for v in (m, louder))
    changed = before["exp_avg_scale"] != after["exp_avg_scale"]
    assert changed.nonzero().tolist() == [[1, 1]]
    other = torch.ones(3, 96 * (1 + x + y) // 8, dtype=torch.bool)
    other[1, 4 * (1 + x + y) : 8 * (1 + x + y)] = False
    assert torch.equal(before["exp_avg_codes"][other], after["exp_avg_codes"][other])


@each_format
@pytest.mark.parametrize("noise", [0, 0x8000, 0xFFFF])
def test_a_block_at_or_below_2_to_minus_100_holds_nothing(x: int, y: int, noise: int) -> None:
    """absmax <= 2^-100 gives scale 0 and codes 0; the next float above gives its maximum the largest code."""
    format = block(x, y)
    above = from_bits(bits_of(2.0**-100) + 1)
    m = torch.tensor([[2.0**-100, -(2.0**-100)] * 16, [from_bits(1)] * 32, [-above] * 32, [0.0, -0.0] * 16])
    absmax = formats.block_absmax(m, format)
    assert absmax.flatten().tolist() == [2.0**-100, from_bits(1), above, 0.0]
    scale = formats.block_scale(absmax, format)
    top = np.float32(float(magnitude(x, y, 2 ** (x + y) - 1)))
    assert scale.flatten().tolist() == [0.0, 0.0, float(np.float32(above) / top), 0.0]
    codes = formats.encode(m, absmax, torch.full((4, 32), noise, dtype=torch.int32), format)
    assert not codes[[0, 1, 3]].any()
    full = np.float32(above) * (top / np.float32(above))
    k = int(encode_magnitudes(x, y, exact_t(np.array([bits_of(float(full))])), noise)[0])
    assert k == 2 ** (x + y) - 1 or noise == 0
    assert codes[2].tolist() == pack([k | 2 ** (x + y)] * 32, format.bits)
    decoded = formats.decode(codes, scale, 32, format)
    assert same_bits(decoded[[0, 1, 3]], torch.zeros(3, 32))


def check_large_block(x: int, y: int, absmax: float, held: float) -> None:
    """A block's scale, maxima, zeros and halves, where r and scale are formed from ``held``."""
    format = block(x, y)
    state = backend.encode(format, torch.tensor([[absmax, -absmax, 0.0, absmax / 2] * 8]))
    top = np.float32(float(magnitude(x, y, 2 ** (x + y) - 1)))
    scale = state["exp_avg_scale"].item()
    assert scale == np.float32(held) / top
    decoded = backend.decode(format, state, (1, 32))
    largest = round32(Fraction(float(top)) * Fraction(scale))
    assert decoded[0, :3].tolist() == [largest, -largest, 0.0]
    scaled = (np.float32(absmax / 2) * (top / np.float32(held))).view(np.int32)
    k = int(encode_magnitudes(x, y, exact_t(np.array([scaled], dtype=np.int64)), 0x8000)[0])
    assert decoded[0, 3].item() == round32(magnitude(x, y, k) * Fraction(scale))


@each_format
@pytest.mark.parametrize("absmax", [2.0**126, from_bits(0x7EFFFFFF), 2.0**127])
def test_large_floats_are_held(x: int, y: int, absmax: float) -> None:
    """Up to 2^127, where top / absmax may be subnormal, maxima take the largest code and zeros stay zeros."""
    check_large_block(x, y, absmax, absmax)


BEYOND = [from_bits(0x7F000001), 1.5 * 2.0**127, FLT_MAX]


@each_format
@pytest.mark.parametrize("absmax", BEYOND)
def test_beyond_2_to_127_momentum_is_held_at_2_to_127(x: int, y: int, absmax: float) -> None:
    """formats.py: r and scale are formed from min(absmax, 2^127), so that the largest code is never infinite."""
    check_large_block(x, y, absmax, 2.0**127)


@each_format
def test_tensor_wise_is_one_block_over_the_whole_tensor(x: int, y: int) -> None:
    """block_wise=False: one scale, shape (1, 1), from the largest magnitude of all rows."""
    m = torch.randn(3, 40, generator=torch.Generator().manual_seed(2))
    m[2, 39] = -7.0
    wise = backend.encode(block(x, y, 0), m)
    assert wise["exp_avg_scale"].shape == (1, 1)
    flat = backend.encode(block(x, y, 128), m.reshape(1, 120))
    assert torch.equal(wise["exp_avg_scale"], flat["exp_avg_scale"])
    assert wise["exp_avg_codes"].shape == (3, 5 * (1 + x + y))
    assert torch.equal(wise["exp_avg_codes"].flatten(), flat["exp_avg_codes"].flatten())
    decoded = backend.decode(block(x, y, 0), wise, (3, 40))
    assert same_bits(decoded.flatten(), backend.decode(block(x, y, 128), flat, (1, 120)).flatten())


@each_format
def test_an_infinite_block_is_nan_as_a_whole(x: int, y: int) -> None:
    """absmax infinite or NaN (only with nonfinite="propagate"): scale NaN, codes 0; other blocks as ever."""
    m = torch.ones(2, 96)
    m[0, 5], m[1, 70] = torch.inf, torch.nan
    state = backend.encode(block(x, y), m)
    decoded = backend.decode(block(x, y), state, (2, 96))
    assert state["exp_avg_scale"].isnan().nonzero().tolist() == [[0, 0], [1, 2]]
    bad = decoded.isnan()
    assert bad[0, :32].all()
    assert bad[1, 64:].all()
    assert int(bad.sum()) == 64
    assert not state["exp_avg_codes"][0, : 4 * (1 + x + y)].any()
    assert decoded[~bad].unique().numel() == 1


@pytest.mark.parametrize(
    "shape", [(), (1,), (70,), (3, 5, 7), (2, 3, 4, 5), (0,), (0, 40), (40, 0), (65, 3), (9, 31), (7, 1, 5, 5)]
)
@pytest.mark.parametrize("name", ["e3m4", "e3m0", "e0m1"])
def test_any_shape_is_rows_of_all_other_dimensions(shape: tuple[int, ...], name: str) -> None:
    """A tensor of any rank is encoded as (first dimension, all the rest), or one row where that is below 32 columns."""
    x, y = EVERY_FORMAT[NAMES.index(name)]
    m = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    narrow = len(shape) < 2 or math.prod(shape[1:]) < 32
    rows, columns = (1, m.numel()) if narrow else (shape[0], math.prod(shape[1:]))
    state = backend.encode(block(x, y), m)
    decoded = backend.decode(block(x, y), state, shape)
    assert decoded.shape == shape
    assert state["exp_avg_codes"].shape == (shape if x + y == 7 else (rows, -(-columns * (1 + x + y) // 8)))
    if m.numel():
        flat = backend.encode(block(x, y), m.reshape(rows, columns))
        assert torch.equal(state["exp_avg_codes"].flatten(), flat["exp_avg_codes"].flatten())
        assert torch.equal(decoded.flatten(), backend.decode(block(x, y), flat, (rows, columns)).flatten())
