"""Advice for users who come from AdamW: settings for Lion, and warnings of faults that raise no error."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import torch

from lionbits_reference.spec import Backend, Format, checks

from . import select, settings, sharding, spelling
from .paging import Pager

#: Adam's betas: torch's default, and what trainers that were written for Adam hand to every optimizer.
ADAMS_BETAS = (0.9, 0.999)

#: Elements from which a slow backend is worth a warning.
MANY = 1_000_000

#: The share of an optimizer's elements that may keep float32 momentum unasked without a warning.
WIDE = 0.1

Group = dict[str, Any]


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


def on_slow_backend(groups: Iterable[Group], backend: Backend | None, pager: Pager) -> None:
    """Warn where nobody chose a backend, and the reference updates many elements on a device that has faster ones.

    Args:
        groups: that were checked.
        backend: that was asked for, or None.
        pager: says where parameters are updated.
    """
    if backend is not None:
        return
    slow: dict[torch.device, int] = {}
    for group in groups:
        for param in group["params"]:
            device = pager.computes_on(param.device)
            if param.requires_grad and device.type in select.PREFERENCE:
                plan = settings.plan(group, param, param.dtype)
                if select.serving(None, plan, device).name == select.REFERENCE:
                    slow[device] = slow.get(device, 0) + param.numel()
    for device, elements in slow.items():
        if elements > MANY:
            faster = select.PREFERENCE[device.type][0]
            reason = select.diagnose(faster, device)
            warn(
                f"the backend 'reference' updates {elements:,} elements on {device}. It is exact and many times slower "
                f"than {faster!r}, which does not serve here: {reason} To keep the reference, set backend='reference'."
            )


def on_wide_momentum(members: Iterable[tuple[Group, torch.Tensor]]) -> None:
    """Warn, once per mesh, of sharded parameters that keep float32 momentum because of how they are sharded.

    Args:
        members: parameters that get their state, and their groups.
    """
    wide = [(group, param) for group, param in members if not sharding.can_hold(param, _wanted(group, param))]
    if not wide or any(sharding.coordinate(wide[0][1])):
        return
    warn(
        f"{len(wide)} sharded parameter(s) keep float32 momentum ({_listed(wide)}): they are cut along another "
        f"dimension than the first, and not into whole blocks of every row. Lower block_size to a divisor of the "
        f"columns on a rank, shard the first dimension, or give them optim_bits=32 to say that this is meant."
    )


def on_small_parameters(groups: Iterable[Group]) -> None:
    """Warn where more than :data:`WIDE` of all elements keep float32 momentum although fewer bits were asked for.

    Parameters that are cut are not counted: :func:`on_wide_momentum` names them.

    Args:
        groups: all of an optimizer's.
    """
    members = [(group, param) for group in groups for param in group["params"] if param.requires_grad]
    small = [(group, param) for group, param in members if _asks_codes(group) and not _wanted(group, param).quantised]
    total, wide = (sum(param.numel() for _, param in some) for some in (members, small))
    if wide <= WIDE * total:
        return
    warn(
        f"{wide:,} of {total:,} elements ({wide / total:.0%}) keep float32 momentum although fewer bits were asked "
        f"for: {len(small)} parameter(s) ({_listed(small)}) have fewer than min_8bit_size elements. Lower "
        f"min_8bit_size, or give them optim_bits=32 to say that this is meant."
    )


def _asks_codes(group: Group) -> bool:
    return settings.state_format(group).quantised


def _wanted(group: Group, param: torch.Tensor) -> Format:
    """Return the format that settings give the parameter if nothing cuts it."""
    return settings.state_format(group).for_parameter(param.shape, group["min_8bit_size"])


def _listed(members: Sequence[tuple[Group, torch.Tensor]]) -> str:
    """Return the names of the first few."""
    return ", ".join(_name(group, param) for group, param in members[:5]) + (", ..." if len(members) > 5 else "")


def _name(group: Group, param: torch.Tensor) -> str:
    names = group.get("param_names")
    if not names:
        return f"one of shape {tuple(param.shape)}"
    held: list[bool] = [held is param for held in group["params"]]
    return str(names[held.index(True)])


def warn(message: str) -> None:
    """Warn on the line of the first caller outside lionbits and torch: the line that made the optimizer."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("lionbits", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
