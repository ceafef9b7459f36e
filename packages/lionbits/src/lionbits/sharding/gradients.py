"""Gradients that are placed otherwise than their parameters.

Tensor and sequence parallelism leave such gradients where no FSDP reduces them: ``Partial`` of a replicated parameter,
whose ranks saw parts of the batch or of the sequence; replicated or ``Partial`` of a sharded one.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from lionbits import torch_private

from .local import placement


@torch.no_grad()
def redistributed(param: Tensor) -> Tensor:
    """The local part of a distributed parameter's gradient, in the placements of the parameter.

    A collective call, of every rank of the mesh; ``param.grad`` is not changed.

    Raises:
        RuntimeError: torch cannot redistribute it so; naming both placements.
    """
    grad, (mesh, placements) = cast(Any, param.grad), placement(param)
    try:
        return torch_private.local(grad.redistribute(mesh, placements))
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise RuntimeError(
            f"the gradient of a parameter of shape {tuple(param.shape)} has placements {grad.placements}, the "
            f"parameter {placements}, and torch {torch.__version__} cannot redistribute it: {error}"
        ) from error
