"""Rounding noise: the hash, the counter, the two sequences, and what they do to a mean."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
import torch

from lionbits_reference import formats, rounding
from lionbits_reference.spec import Format

from .oracle import EVERY_FORMAT, NAMES, fmix32, magnitudes, one_noise

DITHERED, STOCHASTIC = "dithered", "stochastic"

#: Seeds on both sides of every boundary that the hash could trip over.
SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 0x0123456789ABCDEF]


def drawn(mode: str, salt: int, step: torch.Tensor, start: int, pitch: int, shape: tuple[int, int]) -> torch.Tensor:
    """The noise of a rectangle."""
    noise = rounding.noise(mode, salt, step, start, pitch, shape)
    assert isinstance(noise, torch.Tensor)
    return noise


def murmur3(data: bytes, seed: int) -> int:
    """MurmurHash3_x86_32 around the finalizer under test."""
    h, mask = seed, 2**32 - 1

    def scrambled(word: int) -> int:
        word = word * 0xCC9E2D51 & mask
        return ((word << 15 | word >> 17) & mask) * 0x1B873593 & mask

    whole = len(data) // 4 * 4
    for (word,) in struct.iter_unpack("<I", data[:whole]):
        h ^= scrambled(word)
        h = ((h << 13 | h >> 19) & mask) * 5 + 0xE6546B64 & mask
    return rounding.fmix32(h ^ scrambled(int.from_bytes(data[whole:], "little")) ^ len(data))


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        (b"", 0, 0),
        (b"", 1, 0x514E28B7),
        (b"", 0xFFFFFFFF, 0x81F16F39),
        (b"\xff\xff\xff\xff", 0, 0x76293B50),
        (b"\x21\x43\x65\x87", 0, 0xF55B516B),
        (b"\x21\x43\x65\x87", 0x5082EDEE, 0x2362F9DE),
        (b"\x21\x43\x65", 0, 0x7E4A8634),
        (b"\x21\x43", 0, 0xA0F7B07A),
        (b"\x21", 0, 0x72661CF4),
        (b"\0\0\0\0", 0, 0x2362F9DE),
        (b"\0\0\0", 0, 0x85F0B427),
        (b"\0\0", 0, 0x30F4C306),
        (b"\0", 0, 0x514E28B7),
    ],
)
def test_the_finalizer_is_murmurhash3s(data: bytes, seed: int, expected: int) -> None:
    """MurmurHash3_x86_32's published test vectors come out with fmix32 as its last step."""
    assert murmur3(data, seed) == expected


def test_the_finalizer_of_tensors_is_that_of_ints() -> None:
    """int32 tensors wrap where Python ints do not, and give the same 32 bits; the map is one to one."""
    values = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, *np.random.default_rng(0).integers(0, 2**32, 5000).tolist()]
    words = rounding.word(torch.tensor(values))
    assert words.tolist() == [rounding.word(v) for v in values]
    mixed = [word % 2**32 for word in rounding.fmix32(words).tolist()]
    assert mixed == [fmix32(v) for v in values] == [rounding.fmix32(v) for v in values]
    assert len(rounding.fmix32(torch.arange(2**17, dtype=torch.int32)).unique()) == 2**17


@pytest.mark.parametrize("mode", [DITHERED, STOCHASTIC])
@pytest.mark.parametrize("seed", SEEDS)
def test_lanes_of_a_whole_parameter(mode: str, seed: int) -> None:
    """one_noise(i) for i = row * even(cols) + col, over seeds, parameters, purposes, steps and odd widths."""
    shapes = [(1, 1), (3, 7), (4, 6), (1, 33), (5, 1), (2, 2), (3, 5)]
    cases = [(0, 0, 1), (1, 0, 1), (0, 1, 1), (7, 1, 2), (3, 0, 2**31), (2**20, 0, 2**33 + 5), (5, 1, 65536)]
    for (rows, columns), (parameter, purpose, step) in zip(shapes, cases, strict=True):
        pitch = columns + columns % 2
        salt = rounding.salt(seed, parameter, purpose)
        noise = drawn(mode, salt, torch.tensor(step), 0, pitch, (rows, columns))
        assert noise.dtype == torch.int32
        places = [[row * pitch + col for col in range(columns)] for row in range(rows)]
        assert noise.tolist() == [[one_noise(mode, seed, parameter, purpose, step, i) for i in row] for row in places]


@pytest.mark.parametrize("mode", [DITHERED, STOCHASTIC])
@pytest.mark.parametrize(
    ("start", "pitch", "shape"),
    [
        (2**33 - 6, 4, (4, 3)),  # i >> 33 steps from 0 to 1 between rows
        (2**33 - 4, 10, (1, 9)),  # and within one
        (3 * 2**33 - 2, 2**33, (3, 5)),  # rows 2^33 apart: a new high word each, stepping within each
        (2**33 + 2, 2**34 + 2, (4, 7)),  # high words that are not neighbours
        (2**62, 2**40, (2, 3)),
        (0, 2**20, (3, 1)),
    ],
)
def test_lanes_beyond_two_to_33(mode: str, start: int, pitch: int, shape: tuple[int, int]) -> None:
    """Indices whose pair number leaves 32 bits take the high word into the hash."""
    rows, columns = shape
    noise = drawn(mode, rounding.salt(11, 4, 0), torch.tensor(9), start, pitch, shape)
    expected = [
        [one_noise(mode, 11, 4, 0, 9, start + row * pitch + col) for col in range(columns)] for row in range(rows)
    ]
    assert noise.tolist() == expected


def test_nearest_is_half_of_what_is_dropped() -> None:
    """The noise of nearest rounding is 0x8000 for every element."""
    assert rounding.noise("nearest", 1, torch.tensor(1), 0, 8, (2, 8)) == 0x8000


@pytest.mark.parametrize("mode", [DITHERED, STOCHASTIC])
@pytest.mark.parametrize("columns", [6, 7])
def test_a_rectangle_draws_what_the_whole_would_have_drawn(mode: str, columns: int) -> None:
    """Rows, and runs of columns from an even one, of a shard or page get the noise they have in the whole parameter."""
    salt, step, pitch = rounding.salt(5, 2, 0), torch.tensor(3), columns + columns % 2
    whole = drawn(mode, salt, step, 0, pitch, (9, columns))
    for first in range(10):
        for last in range(first, 10):
            rows = drawn(mode, salt, step, first * pitch, pitch, (last - first, columns))
            assert torch.equal(rows, whole[first:last])
    for left in range(0, columns, 2):
        for right in range(left + 1, columns + 1):
            part = drawn(mode, salt, step, 2 * pitch + left, pitch, (7, right - left))
            assert torch.equal(part, whole[2:, left:right])


def test_parameters_purposes_steps_and_seeds_draw_differently() -> None:
    """Changing any one input changes about 65,535 in 65,536 of the noise (dithered: the step shifts all by 40503)."""

    def draw(mode: str, seed: int, parameter: int, purpose: int, step: int) -> torch.Tensor:
        return drawn(mode, rounding.salt(seed, parameter, purpose), torch.tensor(step), 0, 4096, (1, 4096))

    for mode in (DITHERED, STOCHASTIC):
        base = draw(mode, 1, 1, 0, 1)
        for other in ((2, 1, 0, 1), (1 + 2**32, 1, 0, 1), (1, 2, 0, 1), (1, 1, 1, 1), (1, 1, 0, 2)):
            assert int((draw(mode, *other) == base).sum()) <= 4  # 1/16 expected; the draws are fixed, not random
    assert ((draw(DITHERED, 1, 1, 0, 2) - draw(DITHERED, 1, 1, 0, 1)) % 65536 == 40503).all()


def test_no_generator_is_read_or_advanced() -> None:
    """Noise does not depend on torch's global generator, and drawing it leaves that as it was."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = drawn(STOCHASTIC, rounding.salt(1, 0, 0), torch.tensor(1), 0, 64, (4, 64))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(drawn(STOCHASTIC, rounding.salt(1, 0, 0), torch.tensor(1), 0, 64, (4, 64)), first)


def test_lanes_are_spread_evenly() -> None:
    """Over 2^20 elements each of 256 bins of noise holds 4096 +- 384, six sigma; the seed is fixed."""
    for mode in (DITHERED, STOCHASTIC):
        noise = drawn(mode, rounding.salt(1, 0, 0), torch.tensor(1), 0, 1024, (1024, 1024))
        counts = (noise >> 8).flatten().bincount(minlength=256)
        assert int((counts - 4096).abs().max()) < 384


@pytest.mark.parametrize(("x", "y"), EVERY_FORMAT, ids=NAMES)
def test_all_lanes_together_are_exactly_unbiased(x: int, y: int) -> None:
    """The codes of a value under all 65,536 numbers of noise average to it, where noise reaches all of its bits."""
    format, values = Format(1 + x + y, x, y, 0), [float(v) for v in magnitudes(x, y)]
    noise = torch.arange(65536, dtype=torch.int32)[None]
    for low, high in itertools.pairwise(values[:: max(1, len(values) // 16)] + values[-1:]):
        below = max(v for v in values if v < high) if high > low else low
        value = below + (high - below) * 12345 / 65536  # exact: at most 8 + 16 bits
        codes = formats.encode(torch.full((1, 65536), -value), torch.tensor(values[-1]), noise, format)
        decoded = formats.decode(codes, torch.ones(1, 1), 65536, format)
        assert decoded.double().sum().item() == -value * 65536


def mean_errors(mode: str, lengths: list[int]) -> list[float]:
    """RMS, over 4096 elements, of the error of the mean of n encoded values, in units of the step between two codes."""
    format = Format(8, 0, 7, 0)
    columns = 4096
    fraction = torch.rand(1, columns, generator=torch.Generator().manual_seed(1))
    m = (64 + fraction) / 64  # codes 64 and 65 of 2^-6 each
    absmax = torch.tensor(format.top)  # scale 1
    total, errors = torch.zeros(1, columns, dtype=torch.float64), []
    for step in range(1, lengths[-1] + 1):
        noise = drawn(mode, rounding.salt(3, 0, 0), torch.tensor(step), 0, columns, (1, columns))
        total += formats.encode(m, absmax, noise, format).to(torch.float64)
        if step in lengths:
            errors.append(float((total / step - m.double() * 64).square().mean().sqrt()))
    return errors


def test_the_mean_tends_to_the_value() -> None:
    """The error of a mean of n falls as 1/sqrt(n) when stochastic and about as 1/n when dithered.

    Independent draws have variance f(1-f), 1/6 on average over f: n * error^2 = 1/6, here within 10 % (over 4096
    elements the estimate has a standard deviation below 3 %). A golden-ratio sequence keeps n * error below
    log2(n) / 4. Seeds are fixed, so neither bound can flake.
    """
    lengths = [2**j for j in range(4, 13)]
    for n, error in zip(lengths, mean_errors(STOCHASTIC, lengths), strict=True):
        assert abs(n * error**2 * 6 - 1) < 0.1, (n, error)
    for n, error in zip(lengths, mean_errors(DITHERED, lengths), strict=True):
        assert n * error < np.log2(n) / 4, (n, error)


def test_a_full_period_of_the_dither_is_exact() -> None:
    """Over 65,536 steps an element draws each noise once, so the mean is right to the last bit that a noise can see."""
    steps = torch.arange(1, 65537)
    noise = drawn(DITHERED, rounding.salt(0, 0, 0), steps[:, None], 0, 2, (1, 2))
    assert torch.equal(noise[:, 0].sort().values, torch.arange(65536, dtype=torch.int32))
