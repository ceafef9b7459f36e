"""Variants by their names on the command line: ``lion8``, ``paged-lion4``, ``QLion`` and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import Parameter

from .console import CommandError

if TYPE_CHECKING:
    from lionbits import Lion

    from .config import TrainConfig


@dataclass(frozen=True)
class Variant:
    """A class of the family and the arguments that make the named variant."""

    class_name: str
    arguments: dict[str, object] = field(default_factory=dict)


VARIANTS: dict[str, Variant] = {
    "lion": Variant("Lion"),
    "lion32": Variant("Lion32bit"),
    "lion8": Variant("Lion8bit"),
    "lion4": Variant("Lion4bit"),
    "lion2": Variant("Lion", {"optim_bits": 2}),
    "paged-lion": Variant("PagedLion"),
    "paged-lion32": Variant("PagedLion32bit"),
    "paged-lion8": Variant("PagedLion8bit"),
    "paged-lion4": Variant("PagedLion4bit"),
    "qlion": Variant("QLion", {"use_4bit": True}),
}


def canonical(name: str) -> str:
    """Return the short name of a variant, also for its class name: ``PagedLion4bit`` is ``paged-lion4``."""

    def squeezed(text: str) -> str:
        return text.lower().removesuffix("bit").replace("-", "").replace("_", "")

    for known in VARIANTS:
        if squeezed(name) == squeezed(known):
            return known
    raise CommandError(f"unknown variant {name!r}; known: {', '.join(VARIANTS)}, and the class names")


def paged(name: str) -> str:
    """Return the variant of the same width with its state in host memory."""
    name = canonical(name)
    if name.startswith("paged-"):
        return name
    if f"paged-{name}" not in VARIANTS:
        raise CommandError(f"{name} has no paged variant; use --variant paged-lion --bits N")
    return f"paged-{name}"


def arguments(config: TrainConfig) -> dict[str, object]:
    """Return constructor arguments for a run. Those that the user did not give stay the class's defaults."""
    given: dict[str, object] = {"lr": config.lr, "weight_decay": config.weight_decay}
    given |= VARIANTS[config.variant].arguments
    if config.bits is not None:
        given |= _width(config.variant, config.bits)
    optional: dict[str, object] = {
        "backend": config.backend,
        "page_budget": config.page_budget,
        "paged_compute": config.paged_compute,
        "cautious": config.cautious,
        "seed": config.seed or None,
        "param_rounding": config.param_rounding if config.param_rounding != "nearest" else None,
        "master_bits": config.master_bits if config.param_rounding == "compensated" else None,
    }
    if config.variant == "qlion" and config.cautious == "gradient":
        optional["cautious"] = True  # QLion's own name for it
    return given | {key: value for key, value in optional.items() if value is not None}


def _width(variant: str, bits: int) -> dict[str, object]:
    if variant == "qlion":
        if bits not in (4, 32):
            raise CommandError(f"--bits {bits}: qlion has 4 and 32 bits")
        return {"use_4bit": bits == 4}
    if VARIANTS[variant].arguments.get("optim_bits", bits) != bits:
        raise CommandError(f"--bits {bits} contradicts --variant {variant}")
    return {"optim_bits": bits}


def build(config: TrainConfig, parameters: Iterable[Parameter]) -> Lion:
    """Return the optimizer; an error of its constructor becomes a message instead of a traceback."""
    import lionbits

    factory: Callable[..., Lion] = getattr(lionbits, VARIANTS[config.variant].class_name)
    try:
        return factory(parameters, **arguments(config))
    except (TypeError, ValueError, ImportError) as error:
        raise CommandError(f"{config.variant}: {error}") from error


def state_bytes(optimizer: Lion) -> int:
    """Return bytes of all state tensors, scales and compensation included, on any device; without counts of steps."""
    named = (pair for state in optimizer.state.values() for pair in state.items())
    tensors = (t for name, t in named if isinstance(t, Tensor) and name != "step")
    return sum(t.numel() * t.element_size() for t in tensors)
