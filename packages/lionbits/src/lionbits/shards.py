"""Sharded parameters (DTensor): what of one is on this rank, where that lies in the whole, what ranks add up.

Each rank updates its part, as one more rectangle that knows where it lies. ``optimizer.state`` holds plain tensors of
such parts, so that backends and paging see nothing new; they become DTensors, placed like their parameter, where
torch's tools look: in a state dict. Formats and what is kept follow from whole shapes and placements alone, never from
the number of ranks: so a checkpoint of N ranks loads on M.

torch.distributed is imported where there are DTensors, and only then. What it offers in public moves tensors to
the mesh's device, or makes a view at every call: hence its private constructor, and ``_local_tensor``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from lionbits_reference.spec import Plan, Slot, TensorSpec, checks, matrix_shape

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

State = dict[str, Any]


class Spread(NamedTuple):
    """Over which ranks the parts of a tensor lie: along these dimensions of the mesh, and copies along all others."""

    mesh: DeviceMesh
    dims: tuple[int, ...]


def distributed(tensor: object) -> bool:
    """Whether it is a DTensor, without importing torch.distributed to ask."""
    return hasattr(tensor, "placements")


def here(tensor: Tensor) -> Tensor:
    """What of the tensor is on this rank: all, or the local part of a DTensor."""
    if not distributed(tensor):
        return tensor
    local = cast(Any, tensor)._local_tensor
    return cast(Tensor, local.wait() if hasattr(local, "wait") else local)  # it may still be on its way


def spread(param: Tensor) -> Spread | None:
    """Where the parts of a parameter are, if one rank does not have them all."""
    if not distributed(param):
        return None
    mesh = cast(Any, param).device_mesh
    dims = tuple(i for i, dim in enumerate(_split(param)) if dim is not None and mesh.size(i) > 1)
    return Spread(mesh, dims) if dims else None


def total(numbers: Tensor, where: Spread | None, *, largest: bool = False) -> Tensor:
    """The sums (or the largest) of numbers about parts, in place: numbers about whole tensors. A collective call."""
    if where is None:
        return numbers
    import torch.distributed as dist

    near = numbers.to(where.mesh.device_type)  # NCCL carries nothing that is on the host
    for dim in where.dims:
        op = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
        dist.all_reduce(near, op, group=where.mesh.get_group(dim))
    return numbers if near is numbers else numbers.copy_(near)


def cuts_rows(param: Tensor) -> bool:
    """Whether every cut through the parameter falls between rows, so that its codes and scales can be cut likewise."""
    return not distributed(param) or all(dim is None or (dim == 0 and param.dim() > 1) for dim in _split(param))


def coordinate(param: Tensor) -> Sequence[int]:
    """Of this rank, in the mesh of a distributed parameter."""
    return cast(Any, param).device_mesh.get_coordinate() or ()


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


def check_lanes(plan: Plan, param: Tensor) -> None:
    """Refuse a part of which an element's place is not known, where rounding asks for it.

    Raises:
        ValueError: it is no rectangle of rows and columns.
    """
    if plan.draws_for_param and distributed(param) and any(dim is not None and dim > 1 for dim in _split(param)):
        rule = "is cut along a dimension beyond the second, and rounding by lanes asks where in a row an element lies"
        hint = "Shard another dimension, or use param_rounding='nearest', or 'compensated' with master_bits=32."
        raise checks.refusal(ValueError, "placements", placement(param)[1], rule, hint)


def check_gradient(param: Tensor, grad: Tensor) -> None:
    """Refuse a gradient that is not placed like its parameter.

    Raises:
        RuntimeError: naming both placements.
    """
    if placement(param) != placement(grad):
        raise RuntimeError(
            f"the gradient of a parameter of shape {tuple(param.shape)} has placements "
            f"{getattr(grad, 'placements', None)}, the parameter {getattr(param, 'placements', None)}; both must be "
            f"placed alike, on one mesh. Call redistribute() on the gradient, which adds up what is Partial."
        )


def placement(tensor: Tensor) -> tuple[Any, Any]:
    """Mesh and placements of a DTensor, which equal those of another that is cut alike; of any other, (None, None)."""
    return getattr(tensor, "device_mesh", None), getattr(tensor, "placements", None)


def slot(plan: Plan, param: Tensor, grad: Tensor, state: State, index: int) -> Slot | Widened:
    """A parameter, or what of it is here, as backends take it."""
    if not distributed(param):
        return Slot(param, grad, state, index)
    found = Slot(here(param), here(grad), state, index)
    if found.param.numel() and (cuts_rows(param) or plan.draws_for_param):
        columns = matrix_shape(param.shape)[1]
        pitch = columns + columns % 2
        start = _start(param, pitch)
        if start % 2:
            return Widened(plan, found, start, pitch)
        found.start, found.pitch = start, pitch
    return found


class Widened:
    """A part that begins between the two elements of a pair, where backends cannot begin.

    They see it with one more element before each row, a zero, which comes to nothing. Only parameters that are rounded
    by lanes need it, and of these only vectors, or matrices cut into columns, of which ranks have odd numbers.

    Args:
        plan: of the parameter, whose momentum is in float32.
        narrow: the part as it is.
        start, pitch: as of a slot.

    Attributes:
        slot: what backends see.
    """

    def __init__(self, plan: Plan, narrow: Slot, start: int, pitch: int) -> None:
        self._param, self._state, self._keys = narrow.param, narrow.state, list(plan.state_spec(()))
        state = {key: _widened(narrow.state[key]) for key in self._keys}
        self.slot = Slot(_widened(narrow.param), _widened(narrow.grad), state, narrow.index, start - 1, pitch)

    def bring(self) -> None:
        """Take over the part, and the gradient that the slot was given."""
        self.slot.grad = _widened(self.slot.grad)
        for wide, narrow in self._pairs():
            _inside(wide, narrow).copy_(narrow)

    def take_back(self) -> None:
        """Bring the part up to date."""
        for wide, narrow in self._pairs():
            narrow.copy_(_inside(wide, narrow))

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        states = [(self.slot.state[key], self._state[key]) for key in self._keys]
        return [(self.slot.param, self._param), *states]


class Parts:
    """What of parameters and their gradients is here, step after step.

    Args:
        params: some of them distributed, with gradients.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._places = [(j, placement(param)) for j, param in enumerate(params) if distributed(param)]

    def of(self, params: list[Tensor], grads: list[Any]) -> bool:
        """Put local tensors in place of distributed ones, if all are placed as they were."""
        for j, placed in self._places:
            if placement(params[j]) != placed or placement(grads[j]) != placed:
                return False
            params[j], grads[j] = here(params[j]), here(grads[j])
        return True


def exposed(param: Tensor, specs: Mapping[str, TensorSpec], state: Mapping[str, Any]) -> State:
    """The state of a parameter, if it is distributed with DTensors that are placed like it, over the same memory.

    Args:
        param: whose state it is.
        specs: of its whole tensors.
        state: local tensors.
    """
    return {**state, **{key: like(param, state[key], specs[key].shape) for key in _cut(param, specs) & state.keys()}}


def like(param: Tensor, local: Tensor, shape: Sequence[int]) -> Tensor:
    """A local part of a tensor of ``shape`` as a DTensor with the parameter's placements, over the same memory.

    Paged state stays on the host, which is why this is not ``DTensor.from_local``.
    """
    if not distributed(param):
        return local
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    meta = TensorMeta(torch.Size(shape), torch.empty(tuple(shape), device="meta").stride(), local.dtype)
    spec = DTensorSpec(*placement(param), tensor_meta=meta)
    return DTensor(local, spec, requires_grad=False)


def localised(param: Tensor, specs: Mapping[str, TensorSpec], state: Mapping[str, Any]) -> State:
    """The other way round: the state with local tensors, from DTensors or whole tensors.

    Raises:
        ValueError: one is not of the shape that it should have in all, or lies otherwise than the parameter.
    """
    local, cut = dict(state), _cut(param, specs)
    for key in [key for key in state if distributed(state[key]) or key in cut]:
        value, spec = state[key], specs.get(key)
        if not isinstance(value, Tensor) or spec is None or not _fits(value, spec):
            there = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            wanted = "nothing" if spec is None else f"{spec.dtype} of shape {spec.shape}"
            raise ValueError(
                f"{key} of a parameter of shape {tuple(param.shape)} should be {wanted} in all, the state has {there}."
            )
        if not distributed(value):
            local[key] = value[_box(param, spec.shape)]
        elif placement(value) != placement(param):
            raise ValueError(
                f"{key} of a parameter of shape {tuple(param.shape)} has mesh and placements {placement(value)}, the "
                f"parameter {placement(param)}. Use torch.distributed.checkpoint, or a full state dict."
            )
        else:
            local[key] = here(value)
    return local


def _fits(value: Tensor, spec: TensorSpec) -> bool:
    return tuple(value.shape) == spec.shape and value.dtype == spec.dtype


def _cut(param: Tensor, specs: Mapping[str, TensorSpec]) -> set[str]:
    """Which of these tensors are cut as the parameter is: all that have its rows. One scale of a tensor has one."""
    if not distributed(param):
        return set()
    return {key for key, spec in specs.items() if key != "exp_avg_scale" or spec.shape != (1, 1)}


def _split(param: Tensor) -> list[int | None]:
    """Along which of the parameter's dimensions each dimension of the mesh cuts it.

    torch's ``_StridedShard``, of FSDP over tensor parallelism, is no ``Shard`` to ``is_shard()``.
    """
    return [getattr(p, "dim", None) for p in cast(Any, param).placements]


def _box(param: Tensor, shape: Sequence[int]) -> tuple[slice, ...]:
    """Of a tensor of ``shape``, cut like the parameter: what is here."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset as compute

    sizes, offsets = compute(torch.Size(shape), *placement(param))
    return tuple(slice(offset, offset + size) for size, offset in zip(sizes, offsets, strict=True))


def _start(param: Tensor, pitch: int) -> int:
    """Counting position of the first element that is here."""
    first = [cut.start for cut in _box(param, param.shape)]
    row = first.pop(0) if param.dim() > 1 else 0
    column = 0
    for at, size in zip(first, param.shape[-len(first) :], strict=True):
        column = column * size + at
    return cast(int, row * pitch + column)


def _widened(tensor: Tensor) -> Tensor:
    """A copy with a zero before each row: (rows, 1 + columns)."""
    rows, columns = matrix_shape(tensor.shape)
    return torch.nn.functional.pad(tensor.detach().reshape(rows, columns), (1, 0))


def _inside(wide: Tensor, narrow: Tensor) -> Tensor:
    return wide[:, 1:].view(narrow.shape)
