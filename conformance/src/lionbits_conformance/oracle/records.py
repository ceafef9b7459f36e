"""Plain records: the input and output of the oracle, tensors as lists of bit patterns."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

from .floats import BFLOAT16, BINARY16, BINARY32, Binary

#: Names of parameter and gradient types, and what they are.
TYPES: dict[str, Binary] = {"float32": BINARY32, "bfloat16": BFLOAT16, "float16": BINARY16}


@dataclass
class Array:
    """A parameter or a gradient: bit patterns of its elements in logical row-major order, whatever the strides.

    Attributes:
        shape: of any rank, zeros allowed.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        bits: one pattern for each element, unsigned.
    """

    shape: tuple[int, ...]
    dtype: str
    bits: list[int]

    def __post_init__(self) -> None:
        if self.dtype not in TYPES or len(self.bits) != prod(self.shape):
            raise ValueError(f"{len(self.bits)} elements of {self.dtype} are no array of shape {self.shape}")

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns): the first dimension and all the rest; one row of all elements where these are below 32."""
        rest = prod(self.shape[1:])
        if len(self.shape) < 2 or rest < 32:
            return 1, prod(self.shape)
        return self.shape[0], rest


Param: TypeAlias = Array
Grad: TypeAlias = Array


@dataclass(frozen=True)
class Settings:
    """The arguments of ``lionbits.Lion`` that decide results, with its names, meanings and defaults.

    ``lr``, ``betas``, ``weight_decay`` and ``grad_clip`` are binary64 numbers. A learning rate that the optimizer holds
    as a tensor is its value.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    optim_bits: int = 32
    min_8bit_size: int = 4096
    percentile_clipping: int = 100
    block_wise: bool = True
    block_size: int | None = None
    state_format: str | None = None
    rounding: str = "dithered"
    cautious: str | None = None
    grad_clip: float = 0.0
    param_rounding: str = "nearest"
    master_bits: int = 32
    nonfinite: str = "skip"
    maximize: bool = False
    seed: int = 0


@dataclass
class State:
    """The state of a parameter. Fields that its settings do not ask for are None.

    Attributes:
        step: the number of updates it has had.
        exp_avg: binary32 bit patterns of an unquantised momentum.
        exp_avg_codes: bytes, row by row, packed.
        exp_avg_scale: binary32 bit patterns, block by block along each row; or one for the tensor.
        param_residual: what compensated parameters keep beside their bfloat16, signed.
        grad_norms: binary32 bit patterns of the last 100 gradient norms; number s is at s mod 100.
    """

    step: int = 0
    exp_avg: list[int] | None = None
    exp_avg_codes: list[int] | None = None
    exp_avg_scale: list[int] | None = None
    param_residual: list[int] | None = None
    grad_norms: list[int] | None = None


#: The fields of a state that hold one number for each of several places.
LISTS = ("exp_avg", "exp_avg_codes", "exp_avg_scale", "param_residual", "grad_norms")


@dataclass
class Totals:
    """Counts over all parameters and steps.

    Attributes:
        skipped: element updates that were skipped since something was not finite.
        raised: True if the last step skipped any of a parameter with ``nonfinite="raise"``.
    """

    skipped: int = 0
    raised: bool = field(default=False)
