"""State formats: how momentum is held, under which names, and in how many bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from . import checks

#: What ``optim_bits`` alone means: (format name, block size).
DEFAULTS = {32: ("float32", 0), 8: ("e3m4", 256), 4: ("e3m0", 128), 2: ("e0m1", 64)}

#: The names of every format that has codes, by ``optim_bits``, the default first. X is at most 4: with 5, ``top`` over
#: the smallest absmax that gets a scale, 2^-100, is no float32.
FORMATS = {
    8: ("e3m4", "e0m7", "e1m6", "e2m5", "e4m3"),
    4: ("e3m0", "e0m3", "e1m2", "e2m1"),
    2: ("e0m1", "e1m0"),
}

#: Rows shorter than this are not worth a scale each: they are joined to one. A row that is still shorter keeps float32.
MIN_COLUMNS = 32


class TensorSpec(NamedTuple):
    """Shape and dtype of one state tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def rectangle_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A part of some rows of a parameter as (rows, columns): first dimension, all the rest; of a vector, one row."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A parameter seen as (rows, columns), by its **global** shape alone.

    Rows are the first dimension, columns all the rest. Vectors are one row of all their elements, and so are parameters
    with fewer than :data:`MIN_COLUMNS` columns (LoRA's B, depthwise convolutions), so that blocks are full.
    """
    rows, columns = rectangle_shape(shape)
    return (rows, columns) if columns >= MIN_COLUMNS else (1, rows * columns)


@dataclass(frozen=True)
class Format:
    """A block-scaled minifloat ``eXmY``, or float32.

    A code has a sign bit (its highest), then X exponent and Y mantissa bits, the magnitude ``k``. With
    ``e = k >> Y`` and ``f = k mod 2^Y`` its value is ``f * 2^(1-Y)`` where ``e = 0``, else ``(1 + f/2^Y) * 2^e``;
    a block's float32 scale multiplies it. The value is also the float32 with bits ``k << shift``, times 2^127.

    Attributes:
        bits: 32 (float32, no codes), 8, 4 or 2.
        exponent_bits: X, 0..4; :data:`FORMATS` has the names of them all. (8 for float32.)
        mantissa_bits: Y, with 1 + X + Y = bits. (23 for float32.)
        block_size: elements of a row that share one scale, a power of two in 32..4096; 0: one scale for the
            whole tensor.
    """

    bits: int
    exponent_bits: int
    mantissa_bits: int
    block_size: int

    @classmethod
    def of(
        cls,
        optim_bits: int = 8,
        state_format: str | None = None,
        block_size: int | None = None,
        block_wise: bool = True,
    ) -> Format:
        """The format that optimizer arguments ask for.

        Raises:
            TypeError, ValueError: naming the argument, where a value is refused or two arguments contradict
                each other.
        """
        checks.choice("optim_bits", optim_bits, tuple(DEFAULTS))
        checks.flag("block_wise", block_wise)
        default_name, default_block = DEFAULTS[optim_bits]
        exponent, mantissa = _parse(default_name if state_format is None else state_format, optim_bits)
        if block_size is not None:
            _check_block_size(block_size)
        if optim_bits == 32:
            return FLOAT32
        if not block_wise:
            if block_size is not None:
                hint = "Leave block_size out, or use block_wise=True."
                rule = "contradicts block_wise=False, which means one scale per tensor"
                raise checks.refusal(ValueError, "block_size", block_size, rule, hint)
            return cls(optim_bits, exponent, mantissa, 0)
        return cls(optim_bits, exponent, mantissa, default_block if block_size is None else block_size)

    def __post_init__(self) -> None:
        if self.bits == 32:
            return
        checks.choice("bits", self.bits, tuple(DEFAULTS))
        if self.name not in FORMATS[self.bits]:
            rule = f"must be 1 + X + Y = {self.bits} of a format that there is: {', '.join(FORMATS[self.bits])}"
            raise checks.refusal(ValueError, "bits", self.bits, rule)
        if self.block_size != 0:
            _check_block_size(self.block_size)

    @property
    def name(self) -> str:
        """``"e3m4"`` and the like, or ``"float32"``."""
        return "float32" if self.bits == 32 else f"e{self.exponent_bits}m{self.mantissa_bits}"

    def __str__(self) -> str:
        if not self.quantised:
            return self.name
        return (
            f"{self.name} in blocks of {self.block_size}"
            if self.block_size
            else f"{self.name} with one scale per tensor"
        )

    @property
    def quantised(self) -> bool:
        """Whether momentum is held as codes and scales."""
        return self.bits < 32

    @property
    def tensor_wise(self) -> bool:
        """Whether one scale serves the whole tensor."""
        return self.quantised and self.block_size == 0

    @property
    def shift(self) -> int:
        """w = 23 - Y: how far a magnitude code is shifted to stand as the bits of a float32."""
        return 23 - self.mantissa_bits

    @property
    def largest_code(self) -> int:
        """The largest magnitude code."""
        return (1 << (self.bits - 1)) - 1

    @property
    def top(self) -> float:
        """The largest value of a code, before scaling."""
        return self.value(self.largest_code)

    @property
    def bytes_per_element(self) -> float:
        """State bytes per parameter element where rows are whole blocks."""
        return self.bits / 8 + (4 / self.block_size if self.block_size else 0.0)

    def value(self, magnitude: int) -> float:
        """The value of one magnitude code, before scaling (exact in binary64 and binary32)."""
        exponent, fraction = magnitude >> self.mantissa_bits, magnitude % (1 << self.mantissa_bits)
        if exponent == 0:
            return float(fraction * 2.0 ** (1 - self.mantissa_bits))
        return float((1 + fraction * 2.0**-self.mantissa_bits) * 2.0**exponent)

    def for_parameter(self, shape: Sequence[int], min_8bit_size: int) -> Format:
        """This format where a parameter of the **global** ``shape`` is worth quantising, else float32."""
        worthwhile = math.prod(shape) >= min_8bit_size and matrix_shape(shape)[1] >= MIN_COLUMNS
        return self if worthwhile else FLOAT32

    def blocks(self, columns: int) -> int:
        """How many blocks a row of ``columns`` elements has; the last may be short."""
        return -(-columns // self.block_size) if self.block_size else 1

    def momentum_spec(self, shape: Sequence[int]) -> dict[str, TensorSpec]:
        """Names, shapes and dtypes of the momentum state of a parameter (or shard of rows) of ``shape``.

        8-bit codes have the parameter's shape; narrower ones are packed within the row, element 0 in the
        lowest bits.
        """
        if not self.quantised:
            return {"exp_avg": TensorSpec(tuple(shape), torch.float32)}
        rows, columns = matrix_shape(shape)
        codes = tuple(shape) if self.bits == 8 else (rows, -(-columns * self.bits // 8))
        scales = (1, 1) if self.tensor_wise else (rows, self.blocks(columns))
        return {
            "exp_avg_codes": TensorSpec(codes, torch.uint8),
            "exp_avg_scale": TensorSpec(scales, torch.float32),
        }


def _parse(name: object, optim_bits: int) -> tuple[int, int]:
    if not isinstance(name, str):
        raise checks.mistyped("state_format", name, "must be a name such as 'e3m4', or None")
    if optim_bits == 32:
        if name != "float32":
            hint = "Choose optim_bits=8, 4 or 2 for an eXmY format."
            raise checks.refusal(ValueError, "state_format", name, "must be 'float32' at optim_bits=32", hint)
        return 8, 23
    hint = f"{_of_other_bits(name, optim_bits)}None means {DEFAULTS[optim_bits][0]!r}."
    checks.choice("state_format", name, FORMATS[optim_bits], hint)
    exponent, _, mantissa = name.removeprefix("e").partition("m")
    return int(exponent), int(mantissa)


def _of_other_bits(name: str, optim_bits: int) -> str:
    """A sentence, where ``name`` is a format of another width."""
    widths = [bits for bits, names in FORMATS.items() if name in names]
    return f"{name!r} is for optim_bits={widths[0]}, not {optim_bits}. " if widths else ""


def _check_block_size(block_size: object) -> None:
    if isinstance(block_size, bool) or not isinstance(block_size, int):
        raise checks.mistyped("block_size", block_size, "must be an int, or None for the default")
    if not 32 <= block_size <= 4096 or block_size & (block_size - 1):
        raise checks.refusal(ValueError, "block_size", block_size, "must be a power of two in 32..4096")


#: Momentum at 32 bits.
FLOAT32 = Format(32, 8, 23, 0)
