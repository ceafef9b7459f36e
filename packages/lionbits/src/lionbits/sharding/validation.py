"""What cannot be sharded, or not so: refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from lionbits import torch_private
from lionbits_reference.spec import MIN_COLUMNS, Plan, checks, matrix_shape

from .local import coordinate, cut_dims, distributed, placement, shares_blocks

#: Settings that are about whole tensors, each with the values that are not.
_ELEMENTWISE: dict[str, tuple[Any, ...]] = {
    "optim_bits": (32,),
    "percentile_clipping": (100,),
    "grad_clip": (0,),
    "cautious": (None, "gradient"),
    "nonfinite": ("skip", "propagate"),
}


def check(param: Tensor) -> None:
    """Refuse a DTensor whose ranks each hold a term of it, rather than a part.

    Raises:
        TypeError: naming the placements.
    """
    if distributed(param) and any(p.is_partial() for p in cast(Any, param).placements):
        raise TypeError(
            f"placements={cast(Any, param).placements} is not accepted: what ranks hold of it are terms of a sum. "
            f"Call redistribute() with Shard or Replicate placements first."
        )


def check_moving(param: Tensor) -> None:
    """Refuse a parameter whose state may lie on other devices than its mesh has, where that would be in no state dict.

    Raises:
        RuntimeError: naming the version of torch.
    """
    if distributed(param):
        torch_private.check_elsewhere(*placement(param))


def check_gradient(param: Tensor, grad: Tensor) -> None:
    """Refuse a gradient that cannot be brought to the placements of its parameter: of another mesh, or of none.

    Raises:
        RuntimeError: naming mesh and placements of both.
    """
    if placement(param)[0] != placement(grad)[0]:
        raise RuntimeError(
            f"the gradient of a parameter of shape {tuple(param.shape)} has mesh and placements {placement(grad)}, the "
            f"parameter {placement(param)}; both must be DTensors of one mesh, or neither. Make the gradient a DTensor "
            f"of that mesh: DTensor.from_local() where each rank has a part or a term of it, distribute_tensor() where "
            f"rank 0 has all."
        )


def needs_whole(group: Mapping[str, Any]) -> bool:
    """True if a step of this group's parameters needs numbers about whole tensors, which ranks add up."""
    return not group["block_wise"] or any(
        group[name] not in values for name, values in _ELEMENTWISE.items() if name != "optim_bits"
    )


def check_settings(group: Mapping[str, Any], plan: Plan, param: Tensor) -> None:
    """Refuse settings for which one would have to know more of the whole tensor than its part tells.

    Raises:
        ValueError: naming the setting.
    """
    if torch_private.is_flat_piece(param):
        _check_flattened(group, plan)
    if plan.draws_for_param and distributed(param):
        _check_positions(param)
    is_outside = distributed(param) and not coordinate(param)
    if is_outside and (needs_whole(group) or shares_blocks(param, plan.format)):
        raise ValueError(
            f"this rank is outside the mesh of a parameter of shape {tuple(param.shape)} ({placement(param)[0]}), and "
            f"clipping, cautious, block_wise=False, nonfinite='raise' or scales that ranks share ask for numbers about "
            f"the whole tensor, of which it learns nothing. Give the optimizer of each rank the parameters of meshes "
            f"that the rank is in."
        )


def _check_positions(param: Tensor) -> None:
    """Refuse parts whose elements do not count in pairs from row to row, where these pairs share noise."""
    cuts = [dim for dim in cut_dims(param) if dim is not None]
    one_row, across = matrix_shape(param.shape)[0] == 1, math.prod(param.shape[1:])
    if any(dim > 1 for dim in cuts):
        rule = "is cut along a dimension beyond the second, and rounding by noise asks where in a row an element lies"
    elif one_row and param.dim() > 1 and param.shape[0] > 1 and across % 2 and 1 in cuts:
        rule = (
            f"is cut along the second dimension of shape {tuple(param.shape)}, and rounding by noise asks for an even "
            f"number of elements from one of the first dimension to the next where these are fewer than {MIN_COLUMNS}"
        )
    else:
        return
    hint = "Shard another dimension, or use param_rounding='nearest', or 'compensated' with master_bits=32."
    raise checks.refusal(ValueError, "placements", placement(param)[1], rule, hint)


def _check_flattened(group: Mapping[str, Any], plan: Plan) -> None:
    """FSDP1 puts many tensors into one vector, and cuts it where it likes: each element has to be enough for itself."""
    rule = "is about whole tensors, of which FullyShardedDataParallel (FSDP1) leaves but flat pieces"
    hint = "Use torch.distributed.fsdp.fully_shard, or optim_bits=32 without clipping and caution."
    for name, values in _ELEMENTWISE.items():
        if group[name] not in values:
            raise checks.refusal(ValueError, name, group[name], rule, hint)
    if plan.param_rounding != "nearest":
        raise checks.refusal(ValueError, "param_rounding", plan.param_rounding, rule, hint)
