"""The settings of one training run: what a checkpoint remembers, and what resuming may change."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from . import variants
from .console import CommandError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CAUTIOUS = ("mask", "gradient", "c-optim", "timm")
PARAM_ROUNDING = ("nearest", "dithered", "stochastic", "compensated")

# State is the same for every backend and device, so these may change midway; more steps stretch the schedule.
FREE_ON_RESUME = frozenset({"backend", "device", "page_budget", "paged_compute", "eval_every", "steps"})


@dataclass(frozen=True)
class TrainConfig:
    """Defaults suit a laptop: about a million parameters, a few minutes on two cores."""

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
        for name in ("steps", "batch", "context", "layers", "width", "heads", "eval_every"):
            if getattr(self, name) < 1:
                raise CommandError(f"{option(name)} must be at least 1, not {getattr(self, name)}")
        for name in ("lr", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise CommandError(f"{option(name)} must be finite and not negative, not {getattr(self, name)}")
        if self.width % self.heads:
            raise CommandError(f"--width {self.width} is not a multiple of --heads {self.heads}")
        if self.dtype == "float32" and self.param_rounding != "nearest":
            raise CommandError(f"--param-rounding {self.param_rounding} is for --dtype bfloat16")

    def learning_rate(self, step: int) -> float:
        """Short linear warm-up, then a cosine down to a tenth; the first step is 1."""
        warm = max(1, min(100, self.steps // 20))
        if step <= warm:
            return self.lr * step / warm
        progress = (step - warm) / max(1, self.steps - warm)
        return self.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def given(args: Namespace) -> dict[str, Any]:
    """The settings that stand on the command line; the parser leaves the others out of the namespace."""
    names = {field.name for field in fields(TrainConfig)}
    found = {name: value for name, value in vars(args).items() if name in names}
    if "variant" in found:
        found["variant"] = variants.canonical(found["variant"])
    if getattr(args, "paged", False):
        found["variant"] = variants.paged(found.get("variant", TrainConfig.variant))
    return found


def fresh(args: Namespace) -> TrainConfig:
    """The configuration of a new run."""
    config = TrainConfig(**{"device": "auto"} | given(args))
    return replace(config, device=_device(config.device))


def resumed(saved: Mapping[str, Any], args: Namespace) -> TrainConfig:
    """Change the few settings of a checkpoint that may change; anything else would be another run."""
    changes = given(args)
    for name, value in changes.items():
        if name not in FREE_ON_RESUME and saved.get(name) != value:
            raise CommandError(f"{option(name)} {value}: the checkpoint was made with {saved.get(name)}; leave it out")
    known = {field.name for field in fields(TrainConfig)}
    config = TrainConfig(**{name: value for name, value in saved.items() if name in known} | changes)
    return replace(config, device=_device(config.device))


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise CommandError(f"--device {name}: torch sees no CUDA device here (see lionbits doctor)")
    return name
