"""Who is measured: lionbits by backend and variant, and whatever peers are importable here."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import lionbits
from lionbits_reference.spec import Format

Build = Callable[[list[Tensor]], Optimizer]

#: Settings of every contestant that knows them; the time of a step does not depend on their values.
COMMON: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.1}

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


@dataclass(frozen=True)
class Contestant:
    """One optimizer with its settings.

    Attributes:
        name: the backend of lionbits, or the library.
        variant: which optimizer of it, with which settings.
        dtype: of parameters and gradients, ``"bf16"`` or ``"fp32"``.
        state_bytes: per parameter element; decides which workload fits.
        build: makes it for a list of parameters.
        ours: whether it is lionbits.
    """

    name: str
    variant: str
    dtype: str
    state_bytes: float
    build: Build
    ours: bool

    @property
    def bytes_per_element(self) -> float:
        """Parameter, gradient and state."""
        return 2 * DTYPES[self.dtype].itemsize + self.state_bytes


def lions(backends: list[str], dtype: str) -> list[Contestant]:
    """Every variant on every backend: variants outside, so that backends are measured next to each other."""
    chosen = VARIANTS | (BF16_VARIANTS if dtype == "bf16" else {})
    return [_lion(backend, variant, settings, dtype) for variant, settings in chosen.items() for backend in backends]


def _lion(backend: str, variant: str, settings: dict[str, Any], dtype: str) -> Contestant:
    rest = 2.0 if settings.get("param_rounding") == "compensated" else 0.0
    state = Format.of(settings["optim_bits"]).bytes_per_element + rest

    def build(parameters: list[Tensor]) -> Optimizer:
        return lionbits.Lion(parameters, **COMMON, **settings, backend=backend)

    return Contestant(backend, variant, dtype, state, build, ours=True)


def peers(dtype: str) -> list[Contestant]:
    """Other optimizers that can be imported here."""
    size = DTYPES[dtype].itemsize

    def peer(name: str, variant: str, state: float, make: Callable[..., Optimizer], **settings: Any) -> Contestant:
        return Contestant(name, variant, dtype, state, lambda ps: make(ps, **COMMON, **settings), ours=False)

    found = [
        peer("torch", "AdamW, fused", 2.0 * size, torch.optim.AdamW, fused=True),
        peer("torch", "AdamW, foreach", 2.0 * size, torch.optim.AdamW, foreach=True),
    ]
    bitsandbytes = _imported("bitsandbytes")
    if not isinstance(bitsandbytes, str):
        found.append(peer("bitsandbytes", "Lion, 32 bits", 4.0, bitsandbytes.optim.Lion))
        found.append(peer("bitsandbytes", "Lion8bit", 1.02, bitsandbytes.optim.Lion8bit))
    lion_pytorch = _imported("lion_pytorch")
    if not isinstance(lion_pytorch, str):
        found.append(peer("lion-pytorch", "Lion", float(size), lion_pytorch.Lion))
    return found


def peers_found() -> dict[str, str]:
    """The version of each peer, or why it is not there."""
    found = {"torch": str(torch.__version__)}
    for package, module in {"bitsandbytes": "bitsandbytes", "lion-pytorch": "lion_pytorch"}.items():
        imported = _imported(module)
        found[package] = imported if isinstance(imported, str) else _version(package)
    return found


def _imported(module: str) -> Any:
    """The module, or a sentence that says why not. One that is installed and broken must not end the run."""
    if importlib.util.find_spec(module) is None:
        return "not installed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside somebody else's import
            return importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the reason
        return f"does not import: {type(error).__name__}: {error}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
