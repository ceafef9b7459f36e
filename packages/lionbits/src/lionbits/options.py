"""The types of the arguments of the optimizers, as type checkers and editors read them."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal, TypeAlias, TypedDict

#: Bits of an element of the momentum.
Bits: TypeAlias = Literal[32, 8, 4, 2]

#: How momentum below 32 bits is rounded.
Rounding: TypeAlias = Literal["dithered", "stochastic", "nearest"]

#: What becomes of elements whose update and gradient disagree.
Cautious: TypeAlias = Literal["mask", "c-optim", "timm", "gradient"]

#: How 16-bit parameters are rounded.
ParamRounding: TypeAlias = Literal["nearest", "dithered", "stochastic", "compensated"]

#: Bits of a compensated parameter, of which state holds those that the parameter does not.
MasterBits: TypeAlias = Literal[32, 24]

#: What becomes of elements whose gradient is not finite.
Nonfinite: TypeAlias = Literal["skip", "raise", "propagate"]

#: Where paged state is updated.
PagedCompute: TypeAlias = Literal["device", "host"]


class SharedOptions(TypedDict, total=False):
    """The keyword-only arguments of :class:`lionbits.Lion` that :class:`lionbits.QLion` has, too."""

    block_size: int | None
    state_format: str | None
    rounding: Rounding
    param_rounding: ParamRounding
    master_bits: MasterBits
    nonfinite: Nonfinite
    maximize: bool
    seed: int
    page_budget: int | None
    page_size: int | None
    paged_compute: PagedCompute | None
    page_dir: str | None
    backend: str | ModuleType | None
    overrides: Mapping[str, Mapping[str, Any]] | None


class Options(SharedOptions, total=False):
    """The keyword-only arguments of :class:`lionbits.Lion`, which every variant hands on."""

    cautious: Cautious | None
    grad_clip: float
