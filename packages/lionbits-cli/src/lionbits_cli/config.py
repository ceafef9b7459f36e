"""The settings of one training run, those in a checkpoint, and those that resuming may change."""

from __future__ import annotations

import math
import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from . import containers, variants
from .console import CommandError, human_bytes
from .doctor import accelerators

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CAUTIOUS = ("mask", "gradient", "c-optim", "timm")
MOST = 10**9  # of any count; sizes have their limit in the memory that they take
KINDS: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "str": str}
PARAM_ROUNDING = ("nearest", "dithered", "stochastic", "compensated")

CHOICES: dict[str, tuple[object, ...]] = {
    "variant": tuple(variants.VARIANTS),
    "cautious": (None, *CAUTIOUS),
    "dtype": tuple(DTYPES),
    "param_rounding": PARAM_ROUNDING,
    "master_bits": (32, 24),
}

# State is the same for every backend and device, so these may change midway; more steps stretch the schedule.
FREE_ON_RESUME = frozenset({"backend", "device", "page_budget", "paged_compute", "eval_every", "steps"})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. Defaults suit a laptop: about a million parameters, a few minutes on two cores."""

    variant: str = "lion8"
    bits: int | None = None
    backend: str | None = None
    steps: int = 600
    batch: int = 16
    context: int = 128
    lr: float = 4e-4
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    cautious: str | None = None
    page_budget: int | None = None
    paged_compute: str | None = None
    dtype: str = "float32"
    param_rounding: str = "nearest"
    master_bits: int = 32
    layers: int = 4
    width: int = 128
    heads: int = 4
    eval_every: int = 50
    device: str = "cpu"

    def __post_init__(self) -> None:
        _check_types(self)
        for name in ("steps", "batch", "context", "layers", "width", "heads", "eval_every"):
            if not 1 <= getattr(self, name) <= MOST:
                raise CommandError(f"{option(name)} must be in 1..{MOST:,}, not {getattr(self, name)}")
        check_seed(self.seed)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise CommandError(f"{option(name)} {getattr(self, name)} is not one of {', '.join(map(str, known))}")
        for name in ("lr", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise CommandError(f"{option(name)} must be finite and not negative, not {getattr(self, name)}")
        if self.width % self.heads:
            raise CommandError(f"--width {self.width} is not a multiple of --heads {self.heads}")
        if self.dtype == "float32" and self.param_rounding != "nearest":
            raise CommandError(f"--param-rounding {self.param_rounding} is for --dtype bfloat16")

    def check_memory(self) -> None:
        """Refuse a model that this machine's memory cannot hold on the CPU, instead of failing after minutes."""
        if self.device == "cpu" and self.least_bytes > (there := _memory()):
            raise CommandError(
                f"a model and batch of this size take {human_bytes(self.least_bytes)} at least, this machine has "
                f"{human_bytes(there)}; lower --layers, --width or --batch"
            )

    @property
    def least_bytes(self) -> int:
        """Bytes of parameters, gradients and the logits of a batch in float32; activations come on top."""
        parameters = 12 * self.layers * self.width**2 + (2 * 256 + self.context) * self.width
        return 8 * parameters + 4 * 256 * self.batch * self.context

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step: a short linear warm-up, then a cosine down to a tenth; the first step is 1."""
        warm = max(1, min(100, self.steps // 20))
        if step <= warm:
            return self.lr * step / warm
        progress = (step - warm) / max(1, self.steps - warm)
        return self.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _check_types(config: TrainConfig) -> None:
    """Refuse types that the command line never gives, but a checkpoint may have."""
    for field in fields(config):
        kind, _, optional = str(field.type).partition(" | ")
        value = getattr(config, field.name)
        fits = isinstance(value, KINDS[kind]) and not isinstance(value, bool)
        if not (fits or (optional and value is None)):
            raise CommandError(f"{option(field.name)} must be of type {kind}, not {value!r}")


def check_seed(seed: int) -> None:
    """Refuse a seed that torch does not take."""
    if not 0 <= seed < 2**64:
        raise CommandError(f"--seed must be in 0..2^64-1, not {seed}")


def _memory() -> int:
    """Return the bytes of this machine's memory, or of its container's if those are fewer, if the system says."""
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows, for one
        machine = 1 << 62
    return min([machine, *(limit for limit, _ in containers.limits())])


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def given(args: Namespace) -> dict[str, Any]:
    """Return the settings on the command line; the parser leaves the others out of the namespace."""
    names = {field.name for field in fields(TrainConfig)}
    found = {name: value for name, value in vars(args).items() if name in names}
    if "variant" in found:
        found["variant"] = variants.canonical(found["variant"])
    if getattr(args, "paged", False):
        found["variant"] = variants.paged(found.get("variant", TrainConfig.variant))
    return found


def fresh(args: Namespace) -> TrainConfig:
    """Return the configuration of a new run."""
    config = TrainConfig(**{"device": "auto"} | given(args))
    return replace(config, device=_device(config.device))


def resumed(saved: Mapping[str, Any], args: Namespace) -> TrainConfig:
    """Return a checkpoint's settings with the few changes that are allowed; any other would make another run."""
    changes = given(args)
    for name, value in changes.items():
        if name not in FREE_ON_RESUME and saved.get(name) != value:
            raise CommandError(f"{option(name)} {value}: the checkpoint was made with {saved.get(name)}; leave it out")
    known = {field.name for field in fields(TrainConfig)}
    if not isinstance(saved.get("device", "cpu"), str):
        raise CommandError(f"--device must be of type str, not {saved['device']!r}")
    config = TrainConfig(**{name: value for name, value in saved.items() if name in known} | changes)
    return replace(config, device=_device(config.device))


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise CommandError(f"--device {name}: torch sees no CUDA device here (see lionbits doctor)")
    there = ["cpu", *accelerators()]
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CommandError(f"--device {name!r} is no device; there are {', '.join(there)}") from error
    if name not in there and not (device.index is None and f"{device.type}:0" in there):
        raise CommandError(f"--device {name}: there are {', '.join(there)} (see lionbits doctor)")
    return name
