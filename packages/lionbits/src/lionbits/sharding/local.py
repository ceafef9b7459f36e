"""What of a distributed tensor is on this rank, and where that lies in the whole.

torch.distributed is imported where there are DTensors, and only then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from lionbits import torch_private
from lionbits_reference.spec import Format, matrix_shape

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


def can_hold(param: Tensor, format: Format) -> bool:
    """True if the parts of a parameter can have momentum in this format.

    Codes ask that every cut is between rows, in the one row that the parameter is, or between blocks. Cuts along the
    second dimension are between blocks if every rank gets as many whole blocks of each row. Cuts along later
    dimensions, and along the second dimension of a parameter that is one row, leave no runs of blocks.
    """
    cuts = _cuts(param)
    if not format.quantised or all(dim == 0 for dim, _ in cuts):
        return True
    if any(dim > 1 for dim, _ in cuts) or matrix_shape(param.shape)[0] != param.shape[0] or format.tensor_wise:
        return False
    parts = math.prod(size for dim, size in cuts if dim == 1)
    columns = math.prod(param.shape[1:])
    return param.shape[1] % parts == 0 and columns // parts % format.block_size == 0


class Run(NamedTuple):
    """Elements of a parameter that is one row: those from ``first`` up to ``last``, of ``size`` in all."""

    first: int
    last: int
    size: int


def run_of(param: Tensor) -> Run | None:
    """Which elements of a parameter that is one row are on this rank, if several ranks share that row.

    None if rows are whole, or cut along another dimension than the first. A rank outside the mesh has no elements.
    """
    if not _shares_row(param):
        return None
    if not coordinate(param):
        return Run(0, 0, param.numel())
    here = box(param, param.shape)[0]
    across = math.prod(param.shape[1:])
    return Run(here.start * across, here.stop * across, param.numel())


def shares_blocks(param: Tensor, format: Format) -> bool:
    """True if ranks hold parts of a row of blocks, some of which cuts may divide."""
    return format.block_size > 0 and _shares_row(param)


def _shares_row(param: Tensor) -> bool:
    cuts = _cuts(param)
    if not cuts or any(dim != 0 for dim, _ in cuts):
        return False
    return matrix_shape(param.shape)[0] == 1 and param.shape[0] > 1


def lead(format: Format, run: Run | None) -> int:
    """How many elements before a run have codes in the byte of its first code, or share the hash of its noise."""
    return 0 if run is None else run.first % max(2, 8 // format.bits)


def _cuts(param: Tensor) -> list[tuple[int, int]]:
    """Return the dimension that is cut, and among how many ranks, for each dimension of the mesh that cuts one."""
    if not distributed(param):
        return []
    mesh = cast(Any, param).device_mesh
    sizes = [(dim, mesh.size(i)) for i, dim in enumerate(cut_dims(param)) if dim is not None]
    return [(dim, size) for dim, size in sizes if size > 1]


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
