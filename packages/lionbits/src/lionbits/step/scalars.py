"""The numbers of a launch group, on its device: rates are written when one changes, counts advance at every step.

Rates are settings of groups, so three numbers per group are uploaded; the device expands them to the slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lionbits_reference.spec import Scalars, decay_factor

Group = dict[str, Any]


class SlotScalars:
    """The ``Scalars`` of some slots, kept from step to step.

    Args:
        groups: the parameter group of each slot.
        steps: the updates that each slot's parameter has had.
        device: of the slots.
    """

    def __init__(self, groups: Sequence[Group], steps: Sequence[int], device: torch.device) -> None:
        distinct = {id(group): group for group in groups}
        column = {key: j for j, key in enumerate(distinct)}
        self._groups = list(distinct.values())
        self._device = device
        self._column = upload([column[id(group)] for group in groups], torch.int64, device)
        self._rates = torch.empty(3, len(groups), dtype=torch.float32, device=device)
        self.step: Tensor = upload(steps, torch.int64, device)
        self._scalars: Scalars | None = None
        self.write()

    def write(self) -> None:
        """Write the rates that the groups have now; a learning rate in a tensor on a GPU is not read by the host.

        A captured graph fills them in: an upload would need pinned memory, which may not be allocated in a capture.
        """
        lr = [_read(group["lr"]) for group in self._groups]
        keep = [_read(decay_factor(group["lr"], group["weight_decay"])) for group in self._groups]
        sign = [-1.0 if group["maximize"] else 1.0 for group in self._groups]
        captured = self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if captured or any(isinstance(rate, Tensor) for rate in lr):
            rates = torch.stack([vector(row, self._device) for row in (lr, keep, sign)])
        else:
            rates = upload([lr, keep, sign], torch.float32, self._device)
        torch.index_select(rates, 1, self._column, out=self._rates)  # where a captured graph reads them
        self._scalars = None

    def tensors(self) -> list[Tensor]:
        """Return what is kept on the device."""
        return [self._column, self._rates, self.step]

    def now(self, skipped: Tensor, unscale: Tensor | None) -> Scalars:
        """Return the numbers for a backend. Neither it nor the caller may write to the kept rates.

        Args:
            skipped: where skipped elements are counted.
            unscale: what all gradients are multiplied by besides, float32, 0-d.
        """
        if self._scalars is None or self._scalars.skipped is not skipped:
            lr, keep, sign = self._rates.unbind()
            self._scalars = Scalars(lr, keep, sign, self.step, skipped)
        if unscale is None:
            return self._scalars
        return replace(self._scalars, grad_scale=self._scalars.grad_scale * unscale)


def _read(rate: float | Tensor) -> float | Tensor:
    """Return the number in a tensor on the CPU, rounded to binary32; others as they are."""
    if isinstance(rate, Tensor) and rate.device.type == "cpu":
        return float(rate.detach().to(torch.float32).item())
    return rate


def upload(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor on the device, rounded once, without a host sync.

    Args:
        values: numbers, or lists of numbers.
        dtype: of the tensor.
        device: of the tensor.
    """
    host = torch.tensor(values, dtype=dtype, device="cpu")
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def vector(values: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """Return float32[k] on the device, each number rounded once, without a host sync; some may be there already."""

    def scalar(value: float | Tensor) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().reshape(()).to(device, torch.float32)
        return torch.full((), value, dtype=torch.float32, device=device)

    return torch.stack([scalar(value) for value in values])
