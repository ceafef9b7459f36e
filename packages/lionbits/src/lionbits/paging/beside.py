"""Memory for state that lives beside its parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lionbits_reference.spec import TensorSpec

#: Elements of the largest momentum that shares memory.
SMALL = 1024


def zeros(wanted: Sequence[Mapping[str, TensorSpec]], device: torch.device) -> list[dict[str, Tensor]]:
    """Zeroed state tensors on the device for each of the specs.

    On the CPU the float32 momentum of small parameters of one shape is one tensor, of which each has a row, in the
    order of the specs: a backend can take that for a matrix, where copies of each would take longer than the update.
    """
    made = [
        {
            key: torch.zeros(spec.shape, dtype=spec.dtype, device=device)
            for key, spec in specs.items()
            if key != "exp_avg"
        }
        for specs in wanted
    ]
    alike: dict[TensorSpec, list[int]] = {}
    for j, specs in enumerate(wanted):
        if "exp_avg" in specs:
            alike.setdefault(specs["exp_avg"], []).append(j)
    for (shape, dtype), places in alike.items():
        together = device.type == "cpu" and 0 < torch.Size(shape).numel() <= SMALL
        for some in [places] if together else [[j] for j in places]:
            memory = torch.zeros((len(some), *shape), dtype=dtype, device=device)
            for j, tensor in zip(some, memory.unbind(), strict=True):
                made[j]["exp_avg"] = tensor
    return made
