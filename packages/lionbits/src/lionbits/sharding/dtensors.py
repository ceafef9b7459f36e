"""State of parts as the rest of the world sees it: DTensors, placed like their parameter, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils import dlpack

from lionbits_reference.spec import TensorSpec

from .local import box, coordinate, cut_dims, distributed, dtensor, local_tensor, placement

State = dict[str, Any]


def to_dtensor(param: Tensor, specs: Mapping[str, TensorSpec], state: Mapping[str, Any]) -> State:
    """The state of a parameter, if it is distributed with DTensors that are placed like it, over the same memory.

    Args:
        param: whose state it is.
        specs: of whole tensors that are cut like the parameter.
        state: local tensors; those without a spec stay as they are.
    """
    cut = specs.keys() & state.keys() if distributed(param) else set()
    return {**state, **{key: placed_like(param, state[key], specs[key].shape) for key in cut}}


def placed_like(param: Tensor, local: Tensor, shape: Sequence[int]) -> Tensor:
    """A local part of a tensor of ``shape`` as a DTensor with the parameter's placements, over the same memory.

    Many tensors of paged state share a storage: parts that do not begin theirs torch.save takes for plain tensors, and
    fails. So they get one that they do.
    """
    if not distributed(param):
        return local
    if local.storage_offset():
        local = dlpack.from_dlpack(local) if local.numel() else local.new_empty(local.shape)
    return dtensor(local, *placement(param), shape)


def from_dtensor(
    param: Tensor, specs: Mapping[str, TensorSpec], state: Mapping[str, Any], whole: Collection[str] = ()
) -> State:
    """The other way round: the state with local tensors, from DTensors or whole tensors.

    Args:
        param: whose state it is.
        specs: of whole tensors.
        state: DTensors, whole tensors, and entries without a spec, which stay as they are.
        whole: names of tensors that every rank has whole.

    Raises:
        ValueError: one is not of the shape that it should have in all, or lies otherwise than the parameter.
    """
    local, cut = dict(state), specs.keys() - whole if distributed(param) else set()
    for key in [key for key in state if distributed(state[key]) or key in cut]:
        value, spec = state[key], specs.get(key)
        if not isinstance(value, Tensor) or spec is None or not _fits(value, spec):
            there = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            wanted = "nothing" if spec is None else f"{spec.dtype} of shape {spec.shape}"
            raise ValueError(
                f"{key} of a parameter of shape {tuple(param.shape)} should be {wanted} in all, the state has {there}."
            )
        if not distributed(value):
            local[key] = value[box(param, spec.shape)]
        elif placement(value) != placement(param):
            raise ValueError(
                f"{key} of a parameter of shape {tuple(param.shape)} has mesh and placements {placement(value)}, the "
                f"parameter {placement(param)}. Use torch.distributed.checkpoint, or a full state dict."
            )
        elif _part(value) != _part(param):
            raise ValueError(
                f"{key} of a parameter of shape {tuple(param.shape)} is the part at {_part(value)} along the "
                f"dimensions of the mesh that cut it, and this rank holds the part at {_part(param)}: the state dict "
                f"is of another rank. Save on every rank to a file of its own, or use torch.distributed.checkpoint, or "
                f"a full state dict."
            )
        else:
            local[key] = local_tensor(value)
    return local


def _part(tensor: Tensor) -> list[int]:
    """Which part of a DTensor its local tensor is: coordinates in its mesh, which are pickled with it."""
    at = coordinate(tensor)
    return [at[i] for i, dim in enumerate(cut_dims(tensor)) if dim is not None and at]


def _fits(value: Tensor, spec: TensorSpec) -> bool:
    return tuple(value.shape) == spec.shape and value.dtype == spec.dtype
