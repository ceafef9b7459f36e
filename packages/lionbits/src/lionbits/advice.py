"""Advice for users who come from AdamW: settings for Lion, and warnings of faults that raise no error."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from lionbits_reference.spec import checks

from . import settings, spelling

#: Adam's betas: torch's default, and what trainers that were written for Adam hand to every optimizer.
ADAMS_BETAS = (0.9, 0.999)


class Converted(TypedDict):
    """Keyword arguments for :class:`lionbits.Lion`."""

    lr: float
    weight_decay: float


def from_adamw(lr: float, weight_decay: float, factor: float = 10.0) -> Converted:
    """Lion's settings for a model that AdamW trains with these: ``Lion(params, **from_adamw(3e-4, 0.1))``.

    Lion moves every element by the whole learning rate, AdamW by less, so Lion's has to be smaller; what decays per
    step is lr*weight_decay, so weight decay grows as lr shrinks::

        lr = lr / factor       weight_decay = weight_decay * factor

    The Lion paper says 3 to 10. Its authors' own examples (ViT, diffusion, language models) all have 10, which is also
    the careful end: too small a step trains slowly, too large a one diverges. Try 3 next if training is slow. Convert
    the peak and the end of a schedule alike; betas are not converted, Lion's default is right.

    Args:
        lr: AdamW's learning rate, >= 0.
        weight_decay: AdamW's (decoupled) weight decay, >= 0.
        factor: >= 1.

    Returns:
        A dict with ``lr`` and ``weight_decay``.

    Raises:
        TypeError: not a number. ValueError: negative, not finite, or a factor below 1.
    """
    rate, decay = checks.number("lr", lr), checks.number("weight_decay", weight_decay)
    hint = "The paper's is between 3 and 10."
    by = checks.number("factor", factor, hint)
    if by < 1:
        raise checks.refusal(ValueError, "factor", factor, "must be >= 1", hint)
    return {"lr": rate / by, "weight_decay": decay * by}


def on_group(group: Mapping[str, Any], earlier: Iterable[Mapping[str, Any]]) -> None:
    """Warn of settings that train badly, and of notes that look like misspelt settings.

    What an earlier group of the optimizer has as well is not warned of again.
    """
    for key, setting in spelling.misspelt(group.keys(), settings.NAMES).items():
        if not any(key in other for other in earlier):
            warn(f"a parameter group has {key!r}, which is no setting and changes nothing. Did you mean {setting!r}?")
    if group["optim_bits"] == 2 and not any(other["optim_bits"] == 2 for other in earlier):
        warn(
            "optim_bits=2 is for research: on a small language model its held-out loss was 17 % above that of 32 bits "
            "after 2,500 steps with beta2 = 0.99, and 9 % with 0.9; without momentum at all it was 16 %. "
            "Use optim_bits=4 to train."
        )
    if _is_adams(group) and not any(map(_is_adams, earlier)):
        warn(
            "betas=(0.9, 0.999) are Adam's, and the default of trainers written for it. Lion's are (0.9, 0.99): with "
            "beta2 = 0.999 its momentum takes ten times as many steps to turn. Set betas=(0.9, 0.99), in transformers "
            "adam_beta2=0.99 among the TrainingArguments. If you mean 0.999, filter this warning."
        )


def _is_adams(group: Mapping[str, Any]) -> bool:
    return tuple(group["betas"]) == ADAMS_BETAS


def on_surroundings() -> None:
    """Warn if accelerate is about to replace this optimizer with DeepSpeed's Adam.

    Afterwards nothing calls the optimizer any more, so this check runs when an optimizer is made.
    """
    if _offloads(_deepspeed_config()):
        warn(
            "accelerate is set up for DeepSpeed with an offloaded optimizer. Its prepare() then replaces this Lion by "
            "DeepSpeedCPUAdam, at Lion's learning rate and without a word. Set in DeepSpeed's configuration "
            '"zero_force_ds_cpu_optimizer": false and "zero_allow_untested_optimizer": true, which keeps this one '
            "and runs it on the CPU."
        )


def _deepspeed_config() -> Mapping[str, Any]:
    """Return DeepSpeed's configuration, from accelerate or its launcher's environment; nothing is imported for it."""
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is not None and accelerate.is_initialized():
        plugin = accelerate.AcceleratorState().deepspeed_plugin
        return {} if plugin is None else plugin.deepspeed_config
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() != "true":
        return {}
    device = os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
    return {"zero_optimization": {"offload_optimizer": {"device": device}}}


def _offloads(config: Mapping[str, Any]) -> bool:
    """True if accelerate replaces the optimizer: the condition in ``Accelerator._prepare_deepspeed``."""
    offload = config.get("zero_optimization", {}).get("offload_optimizer") or {}
    return offload.get("device", "none") != "none" and bool(config.get("zero_force_ds_cpu_optimizer", True))


def warn(message: str) -> None:
    """Warn on the line of the first caller outside lionbits and torch: the line that made the optimizer."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("lionbits", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
