"""The candidates: lionbits by backend and variant. Other libraries are in :mod:`.peers`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import lionbits
from lionbits_reference.spec import Format

from . import rule
from .rule import COMMON, Build, Check

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

#: Variants of Lion by name. What is about bfloat16 parameters is not tried on float32, where it changes nothing.
VARIANTS: dict[str, dict[str, Any]] = {
    "32 bits": {"optim_bits": 32},
    "8 bits": {"optim_bits": 8},
    "4 bits": {"optim_bits": 4},
    "8 bits, cautious mask": {"optim_bits": 8, "cautious": "mask"},
}
BF16_VARIANTS: dict[str, dict[str, Any]] = {
    "8 bits, compensated": {"optim_bits": 8, "param_rounding": "compensated"},
    "8 bits, dithered parameters": {"optim_bits": 8, "param_rounding": "dithered"},
}

#: Short names of them, for the command line.
SHORT = dict(zip(("32", "8", "4", "mask", "compensated", "dithered"), (*VARIANTS, *BF16_VARIANTS), strict=True))

#: Share of the signs of three steps that rounded momentum may change, by its bits.
ALLOWED = {32: 0.0, 8: 0.02, 4: 0.1}


@dataclass(frozen=True)
class Candidate:
    """One optimizer with its settings.

    Attributes:
        name: the backend of lionbits, or the library.
        variant: which optimizer of it, with which settings.
        dtype: of parameters and gradients, ``"bf16"`` or ``"fp32"``.
        state_bytes: per parameter element; decides which workload fits.
        build: makes it for a list of parameters.
        ours: whether it is lionbits.
        check: of its rule, None where it is another than Lion's or AdamW's.
        main: whether charts over sizes show it.
    """

    name: str
    variant: str
    dtype: str
    state_bytes: float
    build: Build
    ours: bool
    check: Check | None = None
    main: bool = False

    @property
    def bytes_per_element(self) -> float:
        """Parameter, gradient and state."""
        return 2 * DTYPES[self.dtype].itemsize + self.state_bytes


def lions(backends: Sequence[str], dtype: str, variants: Collection[str] | None = None) -> list[Candidate]:
    """Return every variant on every backend, sorted by variant, so that backends are measured next to each other."""
    able = VARIANTS | (BF16_VARIANTS if dtype == "bf16" else {})
    chosen = {name: settings for name, settings in able.items() if variants is None or name in variants}
    return [_lion(backend, variant, settings, dtype) for variant, settings in chosen.items() for backend in backends]


def _lion(backend: str, variant: str, settings: dict[str, Any], dtype: str) -> Candidate:
    residual = 2.0 if settings.get("param_rounding") == "compensated" else 0.0
    bits = settings["optim_bits"]
    plain = len(settings) == 1  # the paper's rule, but for the rounding of the momentum
    check = partial(rule.lion, allowed=ALLOWED[bits]) if plain else None

    def build(parameters: list[Tensor]) -> Optimizer:
        return lionbits.Lion(parameters, **COMMON, **settings, backend=backend)

    state = Format.of(bits).bytes_per_element + residual
    return Candidate(backend, variant, dtype, state, build, True, check, main=plain)
