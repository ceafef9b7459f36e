"""QLion's interface to Lion: its arguments and its quantizer, with Lion's order and packed 4-bit state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from lionbits_reference.spec import Hyper, checks

from .optimizer import Lion, Params
from .options import Bits, SharedOptions


class _Options(SharedOptions, total=False):
    """Keyword arguments of :class:`lionbits.Lion` that QLion has not.

    ``optim_bits`` and ``min_8bit_size`` follow from QLion's arguments: they are accepted with the values of
    ``QLion.defaults``.
    """

    optim_bits: Bits
    min_8bit_size: int
    percentile_clipping: int
    block_wise: bool
    is_paged: bool


class QLion(Lion):
    """:class:`Lion` with QLion's arguments, all of which may also be set per parameter group.

    Differences from the original, on purpose: the update comes from the old momentum (``momentum_first=True`` gives
    the original's order), momentum is rounded without bias in blocks (``state_format="e0m3", block_wise=False,
    rounding="nearest"`` gives its format, which freezes), two elements share a byte, and ``p.grad`` is not changed.

    Args:
        params: as in :class:`Lion`, as are the next three.
        lr: learning rate.
        betas: of the update direction and of the momentum.
        weight_decay: decoupled.
        use_4bit: 4-bit momentum for parameters of more than ``quant_threshold`` elements; else float32.
        cautious: where update and gradient have opposite signs, take the gradient's.
        quant_threshold: an int >= 0.
        grad_clip: scale each tensor's gradient down to this norm; 0: off.
        momentum_first: take the sign from the new momentum, which is Lion with betas (b1*b2, b2); the groups
            then show these.
        **options: keyword arguments of :class:`Lion`.

    Raises:
        TypeError, ValueError: as in :class:`Lion`.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        use_4bit: bool = False,
        cautious: bool = False,
        quant_threshold: int = 1024,
        grad_clip: float = 1.0,
        momentum_first: bool = False,
        **options: Unpack[_Options],
    ) -> None:
        self._own_settings = {
            "use_4bit": use_4bit,
            "cautious": cautious,
            "quant_threshold": quant_threshold,
            "momentum_first": momentum_first,
        }
        lions = _translated({"betas": betas, **self._own_settings})
        for key, own in (("args", "use_4bit"), ("optim_bits", "use_4bit"), ("min_8bit_size", "quant_threshold")):
            if key in options and (key == "args" or options.get(key) != lions[key]):
                rule = f"is no argument of QLion, which has {own} for that"
                raise checks.refusal(TypeError, key, options.get(key), rule, f"Set {own}, or use lionbits.Lion.")
        options.setdefault("optim_bits", lions["optim_bits"])
        options.setdefault("min_8bit_size", lions["min_8bit_size"])
        lions = {"cautious": lions["cautious"], "grad_clip": grad_clip}
        super().__init__(params, lr, betas, weight_decay, **lions, **options)
        self.defaults |= self._own_settings

    def _translated(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return the group in Lion's settings, with QLion's beside them."""
        return _translated({"betas": self.defaults["betas"], **self._own_settings, **group})

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_own_settings": self._own_settings}

    def __repr__(self) -> str:
        return f"QLion(lr={self.defaults['lr']}, quant={self._own_settings['use_4bit']})"


def _translated(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group with Lion's settings for QLion's; settings that only QLion has stay in it.

    A group that was translated before, taken from another QLion, stays as it is.

    Raises:
        TypeError, ValueError: also where a group asks for Lion's settings that contradict QLion's.
    """
    for key in ("use_4bit", "momentum_first"):
        checks.flag(key, group[key])
    threshold = checks.integer("quant_threshold", group["quant_threshold"], 0)
    lions = {"optim_bits": 4 if group["use_4bit"] else 32, "min_8bit_size": threshold + 1}
    for key, qlions in (("optim_bits", "use_4bit"), ("min_8bit_size", "quant_threshold")):
        if group.get(key, lions[key]) != lions[key]:
            rule = f"contradicts {qlions}={group[qlions]!r}"
            raise checks.refusal(ValueError, key, group[key], rule, f"Set {qlions}, or use lionbits.Lion.")
    if lions.keys() <= group.keys():
        return group
    checks.flag("cautious", group["cautious"])
    translated = {**group, **lions, "cautious": "gradient" if group["cautious"] else None}
    if group["momentum_first"]:
        Hyper.of(group["betas"])
        b1, b2 = group["betas"]
        translated["betas"] = (b1 * b2, b2)
    return translated


class SymmetricQuantizer:
    """Linear symmetric quantisation with one scale per tensor, rounded to nearest even.

    Args:
        bits: 2..8, an int.
        min_scale: the smallest scale, > 0; a tensor with no magnitude of at least 1e-8 becomes zeros and
            scale 0.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(self, bits: int = 4, min_scale: float = 1e-8) -> None:
        self.bits: int = checks.integer("bits", bits, 2, 8)
        self.min_scale: float = checks.number("min_scale", min_scale)
        if self.min_scale == 0:
            raise checks.refusal(ValueError, "min_scale", min_scale, "must be > 0")
        self.max_val: int = 2 ** (self.bits - 1) - 1

    def quantize(self, tensor: Tensor) -> tuple[Tensor, float]:
        """int8 codes in [-(2^(bits-1)-1), 2^(bits-1)-1], of the tensor's shape, and their scale.

        Raises:
            TypeError: not a tensor.
            ValueError: the tensor holds a NaN or infinity, for which there is no scale.
        """
        if not isinstance(tensor, Tensor):
            raise checks.refusal(TypeError, "tensor", tensor, "must be a torch.Tensor")
        largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
        if not largest < float("inf"):
            raise ValueError(
                f"tensor of shape {tuple(tensor.shape)} holds values that are not finite; mask them first."
            )
        if largest < 1e-8:
            return torch.zeros_like(tensor, dtype=torch.int8), 0.0
        scale = max(largest / self.max_val, self.min_scale)
        codes = torch.round(tensor.detach() / scale).clamp(-self.max_val, self.max_val)
        return codes.to(torch.int8), scale

    def dequantize(self, quantized: Tensor, scale: float) -> Tensor:
        """codes * scale, float32."""
        return quantized.to(torch.float32) * scale
