"""What of a distributed tensor is on this rank, and where that lies in the whole.

torch.distributed is imported where there are DTensors, and only then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from lionbits import torch_private
from lionbits_reference.spec import matrix_shape

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class ShardGroup(NamedTuple):
    """Over which ranks the parts of a tensor lie: along these dimensions of the mesh, and copies along all others."""

    mesh: DeviceMesh
    dims: tuple[int, ...]


def distributed(tensor: object) -> bool:
    """Whether it is a DTensor, without importing torch.distributed to ask."""
    return hasattr(tensor, "placements")


def local_tensor(tensor: Tensor) -> Tensor:
    """What of the tensor is on this rank: all, or the local part of a DTensor."""
    return torch_private.local(tensor) if distributed(tensor) else tensor


def placement(tensor: object) -> tuple[Any, Any]:
    """Mesh and placements of a DTensor, which equal those of another that is cut alike; of any other, (None, None)."""
    return getattr(tensor, "device_mesh", None), getattr(tensor, "placements", None)


def coordinate(param: Tensor) -> Sequence[int]:
    """Of this rank, in the mesh of a distributed parameter."""
    return cast(Any, param).device_mesh.get_coordinate() or ()


def shard_group(param: Tensor) -> ShardGroup | None:
    """Where the parts of a parameter are, if one rank does not have them all."""
    if not distributed(param):
        return None
    mesh = cast(Any, param).device_mesh
    dims = tuple(i for i, dim in enumerate(cut_dims(param)) if dim is not None and mesh.size(i) > 1)
    return ShardGroup(mesh, dims) if dims else None


def total(numbers: Tensor, where: ShardGroup | None, *, largest: bool = False) -> Tensor:
    """The sums (or the largest) of numbers about parts, in place: numbers about whole tensors. A collective call."""
    if where is None or where.mesh.get_coordinate() is None:  # of a rank that has no part of them
        return numbers
    import torch.distributed as dist

    near = numbers.to(where.mesh.device_type)  # NCCL carries nothing that is on the host
    for dim in where.dims:
        op = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
        dist.all_reduce(near, op, group=where.mesh.get_group(dim))
    return numbers if near is numbers else numbers.copy_(near)


def cuts_rows(param: Tensor) -> bool:
    """Whether every cut through the parameter falls between rows, so that its codes and scales can be cut likewise.

    A parameter that is one row of several has no such place.
    """
    if not distributed(param):
        return True
    has_rows = param.dim() > 1 and matrix_shape(param.shape)[0] == param.shape[0]
    return all(dim is None or (dim == 0 and has_rows) for dim in cut_dims(param))


def cut_dims(param: Tensor) -> list[int | None]:
    """Along which of the parameter's dimensions each dimension of the mesh cuts it.

    torch's ``_StridedShard``, of FSDP over tensor parallelism, is no ``Shard`` to ``is_shard()``.
    """
    return [getattr(p, "dim", None) for p in cast(Any, param).placements]


def box(param: Tensor, shape: Sequence[int]) -> tuple[slice, ...]:
    """Of a tensor of ``shape``, cut like the parameter: what is here."""
    same = tuple(shape) == tuple(param.shape)
    whole = param if same else dtensor(torch.empty(0, device="meta"), *placement(param), shape)
    (chunk,) = cast(Any, whole).__create_chunk_list__()
    return tuple(slice(offset, offset + size) for size, offset in zip(chunk.sizes, chunk.offsets, strict=True))


def dtensor(local: Tensor, mesh: DeviceMesh, placements: Any, shape: Sequence[int]) -> Tensor:
    """A DTensor of ``shape`` over a local part, over the same memory.

    ``DTensor.from_local`` copies what is not on the devices of the mesh, as paged state is.
    """
    from torch.distributed.tensor import DTensor

    size, stride = torch.Size(shape), torch.empty(tuple(shape), device="meta").stride()
    if local.is_meta or local.device.type == mesh.device_type:
        return DTensor.from_local(local, mesh, placements, run_check=False, shape=size, stride=stride)
    return torch_private.elsewhere(local, mesh, placements, size, stride)
