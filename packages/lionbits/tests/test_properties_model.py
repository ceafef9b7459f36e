"""A Lion of Python scalars, written from the design alone: one parameter, whole optimizer steps, element by element.

Floats are numpy float32 scalars, which round once per operation (the tests below hold them against exact fractions);
all else is Python ints and fractions. It shares no line with lionbits and imports nothing of it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest

F = np.float32
M32 = 2**32


def bits_of(x: float) -> int:
    """binary32 bits."""
    return int(struct.unpack("<I", struct.pack("<f", x))[0])


def from_bits(bits: int) -> float:
    """The float with these binary32 bits."""
    return float(struct.unpack("<f", struct.pack("<I", bits % M32))[0])


def fmix32(h: int) -> int:
    """MurmurHash3's finalizer."""
    h = (h ^ h >> 16) * 0x85EBCA6B % M32
    h = (h ^ h >> 13) * 0xC2B2AE35 % M32
    return h ^ h >> 16


def norm_of(values: list[float]) -> float:
    """Euclidean norm of the finite ones: exact sum, integer square root, rounded to binary64 and to binary32."""
    total = sum((Fraction(v) ** 2 for v in values if math.isfinite(v)), Fraction(0)) * 4**200
    return float(F(float(Fraction(math.isqrt(int(total)), 2**200))))


@dataclass
class Model:
    """One parameter of rows x columns in float32 values, with its optimizer.

    Attributes:
        param_bits: 32: float32; 16: bfloat16, in which case ``p`` is what is stored.
        bits, x, y, block: the format; 32 bits: float32 momentum; block 0: one scale for the tensor.
    """

    p: list[float]
    rows: int
    columns: int
    bits: int = 32
    x: int = 8
    y: int = 23
    block: int = 32
    rounding: str = "dithered"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    cautious: str | None = None
    grad_clip: float = 0.0
    percentile_clipping: int = 100
    maximize: bool = False
    param_bits: int = 32
    param_rounding: str = "nearest"
    master_bits: int = 32
    nonfinite: str = "skip"
    seed: int = 0
    index: int = 0
    count: int = 0
    skipped: int = 0
    grad_scale_used: float = 1.0
    norms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = self.rows * self.columns
        self.m = [0.0] * size
        self.codes, self.scales, self.rest = [0] * size, [0.0] * len(self.blocks()), [0] * size

    def blocks(self) -> list[list[int]]:
        """Elements that share a scale, block by block, row by row."""
        if self.block == 0:
            return [list(range(self.rows * self.columns))]
        rows = [range(row * self.columns, (row + 1) * self.columns) for row in range(self.rows)]
        return [list(row[j : j + self.block]) for row in rows for j in range(0, self.columns, self.block)]

    def value(self, k: int) -> Fraction:
        """What magnitude code k means."""
        e, f = k >> self.y, Fraction(k % 2**self.y, 2**self.y)
        return (1 + f) * 2**e if e else 2 * f

    def noise_of_pairs(self, mode: str, purpose: int, j: int) -> int:
        """The 16-bit noise of element j at this step."""
        if mode == "nearest":
            return 32768
        h = fmix32(fmix32(fmix32(fmix32(self.seed % M32) ^ self.seed // M32) ^ self.index) ^ purpose)
        if mode == "stochastic":
            h = fmix32(h ^ self.count * 0x9E3779B9 % M32)
        i = j // self.columns * (self.columns + self.columns % 2) + j % self.columns
        h = fmix32(i // 2 % M32 ^ fmix32(i // 2 // M32 ^ h))
        noise = h // 65536 if i % 2 else h % 65536
        return (noise + self.count * 40503) % 65536 if mode == "dithered" else noise

    def grad_scale(self, grad: list[float]) -> np.float32:
        """Clipping and maximizing."""
        limit, norm = math.inf, norm_of(grad)
        if self.grad_clip:
            limit = float(F(self.grad_clip))
        if self.percentile_clipping < 100:
            empty = not any(self.norms)
            self.norms = [norm] * 100 if empty else [*self.norms[1:], norm]
            limit = min(limit, sorted(self.norms)[self.percentile_clipping - 1])
        factor = F(limit) / F(norm) if norm > limit else F(1)
        return -factor if self.maximize else factor

    def step(self, grad: list[float], lr: float) -> None:
        """One update."""
        with np.errstate(all="ignore"):  # infinities and NaN are part of the meaning
            self.update(grad, lr)

    def update(self, grad: list[float], lr: float) -> None:
        """The rule and all around it."""
        self.count += 1
        b1, b2 = map(F, self.betas)
        a1, a2 = F(1 - self.betas[0]), F(1 - self.betas[1])
        keep = F(1) - F(lr) * F(self.weight_decay)
        scale, aligned = self.grad_scale(grad), 0
        moves: list[int | None] = []
        self.grad_scale_used = float(scale)
        new = list(self.m)
        for j, raw in enumerate(grad):
            m, g = F(self.m[j]), F(raw) * scale
            c, advanced = m * b1 + g * a1, m * b2 + g * a2
            u, towards = int(c > 0) - int(c < 0), int(g > 0) - int(g < 0)
            if self.nonfinite == "skip" and not (math.isfinite(g) and math.isfinite(advanced)):
                self.skipped += 1
                moves.append(None)
                continue
            new[j] = float(advanced)
            aligned += u * towards == 1
            if self.cautious in ("mask", "c-optim", "timm"):
                u = u if u * towards == 1 else 0
            elif self.cautious == "gradient" and u * towards == -1:
                u = towards
            moves.append(u)
        n = len(grad)
        divisor = {"mask": max(aligned, 1), "c-optim": aligned + 1, "timm": max(aligned, n * 1e-3)}.get(
            self.cautious or "", n
        )
        rate = F(lr) * F(n / divisor)
        for j, move in enumerate(moves):
            p = F(from_bits((bits_of(self.p[j]) + self.rest[j]) % M32))
            self.store(j, float(p if move is None else p * keep - rate * F(move)))
        self.remember(new)

    def store(self, j: int, p: float) -> None:
        """p' into the parameter, rounded once."""
        if self.param_bits == 32:
            self.p[j] = p
            return
        bits = bits_of(p)
        if self.param_rounding == "nearest":
            bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
        elif self.param_rounding == "compensated":
            if self.master_bits == 24:
                bits = (bits + (self.noise_of_pairs("dithered", 1, j) >> 8)) & ~0xFF
            kept = (bits + 0x8000) >> 16 << 16
            self.rest[j], bits = bits - kept, kept
        else:
            bits = (bits + self.noise_of_pairs(self.param_rounding, 1, j)) >> 16 << 16
        self.p[j] = from_bits(bits)

    def remember(self, new: list[float]) -> None:
        """m' into the state, and out again as the next step will see it."""
        if self.bits == 32:
            self.m = new
            return
        largest_code, w = 2 ** (self.x + self.y) - 1, 23 - self.y
        top = F(float(self.value(largest_code)))
        for b, block in enumerate(self.blocks()):
            absmax = F(max(abs(new[j]) for j in block))
            whole = all(math.isfinite(new[j]) for j in block)
            live = whole and absmax > F(2.0**-100)
            self.scales[b] = float(absmax / top) if live else (0.0 if whole else math.nan)
            for j in block:
                k = 0
                if live:
                    y = abs(F(new[j])) * (top / absmax)
                    t = round(Fraction(float(y)) * 2**22) if y < 2 else bits_of(float(y)) - (127 << 23)
                    k = min((t + (self.noise_of_pairs(self.rounding, 0, j) << (w - 16))) >> w, largest_code)
                negative = new[j] < 0 and k > 0
                self.codes[j] = k + negative * 2 ** (self.bits - 1)
                decoded = F(float(self.value(k))) * F(self.scales[b])
                self.m[j] = float(-decoded if negative else decoded)

    def packed(self) -> list[list[int]]:
        """Rows of bytes, element 0 in the lowest bits."""
        rows = [self.codes[r * self.columns : (r + 1) * self.columns] for r in range(self.rows)]
        whole = [sum(code << (j * self.bits) for j, code in enumerate(row)) for row in rows]
        return [list(number.to_bytes(-(-self.columns * self.bits // 8), "little")) for number in whole]


def test_numpy_scalars_round_once() -> None:
    """Sum, product and quotient of numpy's float32 scalars are the exact result rounded to nearest even."""
    rng = np.random.default_rng(0)
    for a, b in (rng.standard_normal((500, 2)) * 2.0 ** rng.integers(-75, 55, (500, 2))).astype(F):
        x, y = Fraction(float(a)), Fraction(float(b))
        for got, exact in ((a * b, x * y), (a + b, x + y), (a / b, x / y)):
            size = abs(exact)
            exponent = max(math.frexp(float(size))[1] - 1, -126)  # binary64 only finds the binade
            unit = Fraction(2) ** (exponent - 23)
            assert type(got) is F
            assert Fraction(float(got)) == round(exact / unit) * unit


@pytest.mark.parametrize(("k", "value"), [(0, 0), (1, 0.125), (15, 1.875), (16, 2), (17, 2.125), (32, 4), (127, 248)])
def test_the_model_reads_e3m4(k: int, value: float) -> None:
    """Values of the default 8-bit format, worked out by hand."""
    assert Model([0.0], 1, 1, 8, 3, 4).value(k) == value
