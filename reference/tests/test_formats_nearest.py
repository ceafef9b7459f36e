"""Encoding: nearest is nearest, codes survive a round trip, zero stays zero, and the two forms of ``t`` are one."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from lionbits_reference import backend, formats
from lionbits_reference.spec import Format

from .oracle import (
    EVERY_FORMAT,
    NAMES,
    Floats,
    Ints,
    encode_magnitudes,
    exact_t,
    magnitude,
    magnitudes,
    same_bits,
    tensor,
)

each_format = pytest.mark.parametrize(("x", "y"), EVERY_FORMAT, ids=NAMES)


def top_of(x: int, y: int) -> float:
    """The largest magnitude, a binary32 number."""
    return float(magnitude(x, y, 2 ** (x + y) - 1))


def brute_force(x: int, y: int, scaled: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Ints:
    """The code nearest to each number (exact in binary64), by looking at the distance to every one.

    Ties go up. Below 2, where the integer that is rounded counts units of 2^-22 and rounds ties to even, so do numbers
    up to 2^-23 short of a tie.
    """
    values = np.array([float(v) for v in magnitudes(x, y)])
    wide = np.minimum(scaled, values[-1])
    distance = np.abs(wide[:, None] - values)
    nearest = distance.argmin(axis=1)
    above = np.minimum(nearest + 1, len(values) - 1)
    tie = (values[nearest] + values[above]) / 2
    up = (wide >= tie) | ((wide < 2) & (wide >= tie - 2.0**-23))
    codes: Ints = np.where(up, above, nearest)
    return codes


def candidates(x: int, y: int, rng: np.random.Generator) -> Floats:
    """Magnitudes up to ``top``: at and around every value and every tie, at random, subnormal and near the edges."""
    values = np.array([float(v) for v in magnitudes(x, y)])
    marks = np.concatenate((values, (values[1:] + values[:-1]) / 2, [2.0, 1.0])).astype(np.float32)
    around = (marks.view(np.int32)[:, None] + np.arange(-40, 41)).clip(0).astype(np.int32).view(np.float32)
    offsets = (marks[:, None] + np.arange(-64, 65) * 2.0**-24).clip(0).astype(np.float32)
    spread = 2.0 ** rng.uniform(-149, np.log2(values[-1]), 20_000)
    even = rng.uniform(0, values[-1], 30_000)
    low = rng.uniform(0, min(values[-1], 4.0), 40_000)
    tiny = np.arange(1, 2_000, dtype=np.int32).view(np.float32)
    parts = [part.ravel().astype(np.float32) for part in (around, offsets, spread, even, low, tiny)]
    return np.minimum(np.concatenate(parts), np.float32(values[-1]))


@each_format
def test_nearest_is_brute_force_nearest(x: int, y: int) -> None:
    """In blocks whose scale is a power of two every code is the nearest of all, on about 100,000 inputs a format."""
    rng = np.random.default_rng(x * 10 + y)
    y_all = candidates(x, y, rng)
    y_all = np.concatenate((y_all, np.zeros(-len(y_all) % 63, np.float32))).reshape(-1, 63)
    power = np.where(rng.random(len(y_all)) < 0.5, 0, rng.integers(-97, 110, len(y_all)))
    m = np.ldexp(y_all, power[:, None]).astype(np.float32)  # rounds only what is subnormal, far below any tie
    m = np.concatenate((np.ldexp(np.float32(top_of(x, y)), power)[:, None], m), axis=1)
    sign = np.where(rng.random(m.shape) < 0.5, np.float32(-1), np.float32(1))
    format = Format(1 + x + y, x, y, 64)
    state = backend.encode(format, tensor(m * sign))
    assert state["exp_avg_scale"].flatten().tolist() == np.ldexp(1.0, power).tolist()
    k = brute_force(x, y, np.ldexp(m.astype(np.float64), -power[:, None]).ravel())
    value = np.array([float(v) for v in magnitudes(x, y)])[k].reshape(m.shape)
    expected = np.ldexp(value, power[:, None]) * np.where(value > 0, sign, 1)
    assert m.size > 92_000
    assert same_bits(backend.decode(format, state, m.shape), tensor(expected.astype(np.float32)))


@each_format
def test_nearest_is_brute_force_nearest_whatever_the_maximum(x: int, y: int) -> None:
    """With any absmax the same holds of y = |m| * (top / absmax) in float32; maxima take the largest code."""
    rng = np.random.default_rng(100 + x * 10 + y)
    m = (rng.standard_normal((300, 64)) * 2.0 ** rng.integers(-90, 120, (300, 1))).astype(np.float32)
    absmax = np.abs(m).max(axis=1, keepdims=True)
    scaled = np.abs(m) * (np.float32(top_of(x, y)) / absmax)
    k = brute_force(x, y, scaled.astype(np.float64).ravel()).reshape(m.shape)
    assert (k[np.abs(m) == absmax] == 2 ** (x + y) - 1).all()
    codes = k + np.where((m < 0) & (k > 0), 2 ** (x + y), 0)
    wide = Format(1 + x + y, x, y, 64)
    packed = formats.encode(tensor(m), tensor(absmax), 0x8000, wide)
    assert formats.block_absmax(tensor(m), wide).tolist() == absmax.tolist()
    per = 8 // wide.bits
    weights = 2 ** (wide.bits * np.arange(per))
    assert packed.tolist() == (codes.reshape(300, -1, per) * weights).sum(axis=2).tolist()


@each_format
def test_the_last_bit_of_t_counts(x: int, y: int) -> None:
    """With any absmax, the least noise that rounds up and the one below it tell y and t apart from their neighbours."""
    rng = np.random.default_rng(200 + x * 10 + y)
    m = (rng.standard_normal((200, 64)) * 2.0 ** rng.integers(-90, 120, (200, 1))).astype(np.float32)
    absmax = np.abs(m).max(axis=1, keepdims=True)
    t = exact_t((np.abs(m) * (np.float32(top_of(x, y)) / absmax)).view(np.int32).astype(np.int64))
    least = (-(t >> (7 - y))) % 65536
    wide = Format(1 + x + y, x, y, 64)
    for noise in (least, np.maximum(least - 1, 0)):
        k = encode_magnitudes(x, y, t, noise)
        codes = k + np.where((m < 0) & (k > 0), 2 ** (x + y), 0)
        packed = formats.encode(tensor(m), tensor(absmax), tensor(noise.astype(np.int32)), wide)
        weights = 2 ** (wide.bits * np.arange(8 // wide.bits))
        assert packed.tolist() == (codes.reshape(200, -1, len(weights)) * weights).sum(axis=2).tolist()


@each_format
def test_codes_survive_a_round_trip(x: int, y: int) -> None:
    """decode(encode(decode(code))) is decode(code) bit for bit, for every code beside a maximum, and any scale."""
    format = Format(1 + x + y, x, y, 512)
    count = 2**format.bits
    half = count // 2
    rng = np.random.default_rng(7)
    absmax = tensor((rng.uniform(1, 2, 200) * 2.0 ** rng.integers(-95, 120, 200)).astype(np.float32)[:, None])
    count = max(count, 32)  # a row has to be a row
    codes = (torch.arange(count) % 2**format.bits).to(torch.uint8).repeat(200, 1)
    packed = codes[:, 0 :: 8 // format.bits].clone()
    for j in range(1, 8 // format.bits):
        packed |= codes[:, j :: 8 // format.bits] << (j * format.bits)
    first = formats.decode(packed, formats.block_scale(absmax, format), count, format)
    again = backend.encode(format, first)
    assert torch.equal(backend.decode(format, again, first.shape), first)
    minus_zero = first.view(torch.int32) == -(2**31)
    assert torch.equal((minus_zero.nonzero()[:, 1] % 2**format.bits).unique(), torch.tensor([half]))  # never written
    assert torch.equal(again["exp_avg_scale"], formats.block_scale(absmax, format))
    once_more = backend.encode(format, backend.decode(format, again, first.shape))
    assert torch.equal(once_more["exp_avg_codes"], again["exp_avg_codes"])


@each_format
def test_zero_stays_zero_under_every_lane(x: int, y: int) -> None:
    """0.0 and -0.0 encode to code 0 under each of the 65,536 noise values, beside a large neighbour and alone."""
    format = Format(1 + x + y, x, y, 0)
    noise = torch.arange(65536, dtype=torch.int32)[None]
    for zero in (0.0, -0.0):
        m = torch.full((1, 65536), zero)
        for absmax in (1.0, 2.0**-99, 3e38, 0.0):
            assert not formats.encode(m, torch.tensor(absmax), noise, format).any()


@each_format
def test_no_lane_leaves_the_format(x: int, y: int) -> None:
    """A noise moves a code up by at most one, never past the largest, and never changes a sign."""
    format = Format(1 + x + y, x, y, 0)
    noise = torch.arange(0, 65536, 7, dtype=torch.int32)[None]
    for value in (top_of(x, y), 0.7 * top_of(x, y), 0.01, -top_of(x, y), -1.3):
        m = torch.full(noise.shape, value)
        packed = formats.encode(m, torch.tensor(top_of(x, y)), noise, format)
        decoded = formats.decode(packed, torch.ones(1, 1), noise.shape[1], format)
        t = int(exact_t(np.array([abs(np.float32(value)).view(np.int32)], dtype=np.int64))[0])
        k = encode_magnitudes(x, y, np.full(noise.shape, t), noise.numpy())
        expected = np.copysign(np.array([float(v) for v in magnitudes(x, y)])[k], value)
        assert same_bits(decoded, tensor(np.where(k == 0, 0.0, expected).astype(np.float32)))


def both_forms_and_the_encoder_agree(bits: Ints) -> None:
    """bits(y * 2^-127) = rint(y * 2^22) or bits(y) - (127 << 23) = integer arithmetic, and the encoder uses it."""
    y_tensor = tensor(bits.astype(np.int32)).view(torch.float32)
    gradual = (y_tensor * 2.0**-127).view(torch.int32)
    split = torch.where(
        y_tensor < 2, (y_tensor * 2.0**22).round().to(torch.int32), y_tensor.view(torch.int32) - (127 << 23)
    )
    assert torch.equal(gradual, split)
    t = exact_t(bits)
    assert torch.equal(gradual, tensor(t.astype(np.int32)))
    for x, y in ((0, 7), (4, 3)):  # the finest code, and the one that reaches furthest
        inside = bits <= int(np.float32(top_of(x, y)).view(np.int32))
        if inside.any():
            format = Format(8, x, y, 0)
            noise = (-(t[inside] >> (7 - y))) % 65536  # the least that rounds up; one less must not
            m, absmax = y_tensor[tensor(inside)][None], torch.tensor(top_of(x, y))
            for added in (noise, np.maximum(noise - 1, 0)):
                codes = formats.encode(m, absmax, tensor(added.astype(np.int32))[None], format)
                expected = encode_magnitudes(x, y, t[inside], added)
                assert torch.equal(codes[0], tensor(expected.astype(np.uint8)))


def test_the_two_forms_of_t_agree() -> None:
    """Over every exponent below 2^8: all leading 11 bits of the significand, with the low 12 at random and at edges."""
    rng = np.random.default_rng(5)
    for exponent in range(135):
        lead = (exponent << 23) + (np.arange(2048, dtype=np.int64) << 12)
        lows = [0, 1, 0x7FF, 0x800, 0x801, 0xFFF]
        both_forms_and_the_encoder_agree(
            np.concatenate([lead + low for low in lows] + [lead + rng.integers(0, 4096, 2048) for _ in range(2)])
        )


@pytest.mark.skipif(os.environ.get("LIONBITS_EXHAUSTIVE") != "1", reason="LIONBITS_EXHAUSTIVE=1 runs it: minutes")
def test_the_two_forms_of_t_agree_on_every_float_below_256() -> None:
    """The same for all 1,132,462,080 non-negative floats below 2^8, subnormal ones included."""
    chunk = 1 << 21
    for first in range(0, 135 << 23, chunk):
        both_forms_and_the_encoder_agree(np.arange(first, first + chunk, dtype=np.int64))
