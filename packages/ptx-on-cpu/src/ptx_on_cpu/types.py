"""PTX types and the numpy types that hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

#: Values of one register for the threads of a group: unsigned integers or bools, or one such number for all of them.
Array = npt.NDArray[Any]

UNSIGNED: dict[int, Any] = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_SIGNED: dict[int, Any] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
_FLOATS: dict[int, Any] = {16: np.float16, 32: np.float32, 64: np.float64}


@dataclass(frozen=True)
class Type:
    """A type of PTX, as ``u32``.

    Attributes:
        name: as PTX writes it, without the point.
        kind: ``b``, ``u``, ``s``, ``f``, ``bf``; ``x2`` for two float32 in 64 bits; ``pred``.
        bits: width.
    """

    name: str
    kind: str
    bits: int

    @property
    def unsigned(self) -> Any:
        """The numpy type of registers of this width."""
        return UNSIGNED[self.bits]

    @property
    def numbers(self) -> Any:
        """The numpy type whose arithmetic this type has."""
        if self.kind == "s":
            return _SIGNED[self.bits]
        return _FLOATS[self.bits] if self.kind == "f" else self.unsigned

    @property
    def signed(self) -> bool:
        """True for signed integers."""
        return self.kind == "s"

    @property
    def integer(self) -> bool:
        """True for integers and untyped bits."""
        return self.kind in ("b", "u", "s")

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.bits // 8


PRED = Type("pred", "pred", 1)

TYPES = {
    **{f"{kind}{bits}": Type(f"{kind}{bits}", kind, bits) for kind in "bus" for bits in (8, 16, 32, 64)},
    **{f"f{bits}": Type(f"f{bits}", "f", bits) for bits in (16, 32, 64)},
    "bf16": Type("bf16", "bf", 16),
    "f32x2": Type("f32x2", "x2", 64),
    "pred": PRED,
}


@dataclass(frozen=True)
class Rule:
    """An instruction without memory: results of each thread from operands of the same thread.

    Attributes:
        function: of as many arrays as there are operands; returns the result.
        operands: their types.
        result: type of the result.
        moved: so many first operands are moved and not combined: undefined bits move with them. Else, and where another
            operand is undefined, all bits of the result are undefined.
        shadow: the undefined bits of the result, by operands and their undefined bits, where ``moved`` does not say it.
        makes_undefined: True if the result may be undefined though no operand is.
    """

    function: Callable[..., Array]
    operands: tuple[Type, ...]
    result: Type
    moved: int = 0
    shadow: Callable[[list[Array], list[Array]], Array] | None = None
    makes_undefined: bool = False


#: Comparisons by their modifiers; of floats these are false where one is NaN, but for ``ne``.
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
