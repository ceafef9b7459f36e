"""Operators on simulated tensors: torch's CPU kernels, run later, on the memory that the tensors have.

torch asks for the kernel of an operator on the device; all lead to :func:`run`. Sizes of results are computed at
once, on meta tensors; values when the stream reaches the work.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .copies import copy, to_other
from .schedule import Queue, Work
from .state import current
from .views import View

aten = torch.ops.aten

#: Operators whose CPU kernels change a tensor's description only, and do not touch its memory.
DESCRIBE = (aten.set_.source_Storage, aten.set_.source_Storage_storage_offset, aten.set_.source_Tensor)

_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def register() -> None:
    """Register the kernels of the device with torch, once for the process."""
    if not _libraries:
        everything, few = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
        everything.fallback(run, "CUDA")
        few.impl("copy_", copy_, "CUDA")
        few.impl("_to_copy", to_other, "CUDA")
        few.impl("record_stream", record_stream, "CUDA")
        _libraries.extend((everything, few))


_libraries: list[torch.library.Library] = []


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Do an operator: describe its result now, and let the current stream compute it."""
    if op in DESCRIBE or _is_view(op):
        return op.redispatch(_CPU, *args, **kwargs)
    if op in (aten.empty.memory_format, aten.empty_strided.default):
        return empty(op, *args, **kwargs)
    if op is aten.resize_.default:
        return resize(*args)
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    args = tuple(_wrapped(op, place, value, tensors) for place, value in enumerate(args))
    queue = current().current_queue(_device(op, tensors))
    if _is_read(op):
        return _now(op, queue, args, kwargs)
    written = [kwargs.get(argument.name) for argument in op._schema.arguments if argument.is_out]
    outputs = None
    if not op._schema.returns or op._schema.returns[0].alias_info is None:
        outputs = _outputs(op, args, kwargs)
    elif written and any(not out.numel() for out in written if isinstance(out, Tensor)):
        _fit(op, args, kwargs, [out for out in written if isinstance(out, Tensor)])
    submit(op, queue, args, kwargs, [] if outputs is None else pytree.tree_leaves(outputs))
    if outputs is not None:
        return outputs
    aliased = [_aliased(op, i, args, kwargs) for i in range(len(op._schema.returns))]
    return aliased[0] if len(aliased) == 1 else tuple(aliased) or None


def submit(op: Any, queue: Queue, args: Any, kwargs: Any, outputs: Sequence[Tensor]) -> None:
    """Queue an operator.

    Args:
        op: the operator.
        queue: stream that runs it.
        args, kwargs: of the call. Tensors of the CPU in them have one element, which is read now.
        outputs: new tensors that get its results.
    """
    leaves, structure = pytree.tree_flatten((args, kwargs))
    views = [_described(leaf) for leaf in leaves]
    into = [View.of(tensor) for tensor in outputs]

    def work() -> None:
        own = [leaf.tensor() if isinstance(leaf, View) else leaf for leaf in views]
        own_args, own_kwargs = pytree.tree_unflatten(own, structure)
        results = pytree.tree_leaves(op(*own_args, **own_kwargs))
        for view, result in zip(into, results if into else (), strict=True):
            view.tensor().copy_(result)

    world = current()
    used = [leaf.address for leaf in (*views, *into) if isinstance(leaf, View)]
    world.schedule.counts["launches"] += 1
    world.schedule.submit(queue, Work(str(op), work, world.memory.blocks_at(*used)))


def empty(op: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Return a tensor of any content on the device, from the pool of its current stream."""
    device = torch.device(kwargs["device"])
    like = op(*args, **{**kwargs, "device": "meta", "pin_memory": False})
    return new(like, device.index if device.index is not None else current().device())


def new(like: Tensor, device: int) -> Tensor:
    """Return a new tensor with the size, stride and dtype of a meta tensor."""
    world = current()
    count = like.untyped_storage().nbytes()
    memory = world.memory.allocate(count, world.current_queue(device))
    flat: Tensor = aten.view.dtype.redispatch(_CPU, memory, like.dtype)
    return flat.as_strided(like.size(), like.stride()) if count else flat.view(0).as_strided(like.size(), like.stride())


def resize(self: Tensor, size: Sequence[int], *, memory_format: Any = None) -> Tensor:
    """Resize a tensor; it gets new memory if it grows."""
    like = torch.empty(tuple(size), dtype=self.dtype, device="meta")
    if like.untyped_storage().nbytes() > self.untyped_storage().nbytes() - self.storage_offset() * self.itemsize:
        grown = new(like, self.device.index)
        aten.set_.source_Tensor.redispatch(_CPU, self, grown)
    else:
        place = self.untyped_storage(), self.storage_offset(), like.size(), like.stride()
        aten.set_.source_Storage_storage_offset.redispatch(_CPU, self, *place)
    return self


def copy_(self: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``self.copy_(source)``, in the way of the two devices."""
    return copy(self, source, non_blocking=non_blocking)


def record_stream(self: Tensor, stream: Any) -> None:
    """Keep the tensor's memory until the stream has done its work of now."""
    for block, _ in current().memory.blocks_at(self.untyped_storage().data_ptr()):
        block.used_on.add(stream.queue)


def _now(op: Any, queue: Queue, args: Any, kwargs: Any) -> Any:
    """Wait for the stream, and give the host what the operator returns."""
    world = current()
    world.synchronize(queue, f"{op} (the host reads its result)")
    leaves, structure = pytree.tree_flatten((args, kwargs))
    own = [View.of(leaf).tensor() if isinstance(leaf, Tensor) and leaf.is_cuda else leaf for leaf in leaves]
    own_args, own_kwargs = pytree.tree_unflatten(own, structure)
    result = op(*own_args, **own_kwargs)
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(torch.device("cuda", queue.device)), result)


def _outputs(op: Any, args: Any, kwargs: Any) -> Any:
    """Return new tensors for the results of an operator."""
    device = _device(op, [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])
    meta_args, meta_kwargs = pytree.tree_map_only(Tensor, _meta, (args, kwargs))
    meta_kwargs.update({"device": "meta"} if "device" in meta_kwargs else {})
    return pytree.tree_map_only(Tensor, lambda like: new(like, device), op(*meta_args, **meta_kwargs))


def _fit(op: Any, args: Any, kwargs: Any, outs: Sequence[Tensor]) -> None:
    """Resize empty ``out=`` tensors to what the operator writes."""
    meta_args, meta_kwargs = pytree.tree_map_only(Tensor, _meta, (args, kwargs))
    for out, like in zip(outs, pytree.tree_leaves(op(*meta_args, **meta_kwargs)), strict=True):
        if out.size() != like.size():
            resize(out, like.size())


def _wrapped(op: Any, place: int, value: Any, tensors: Sequence[Tensor]) -> Any:
    """Return an argument; a number that stands for a tensor as one that changes no dtype that the number would not."""
    if not isinstance(value, bool | int | float | complex) or str(op._schema.arguments[place].type) != "Tensor":
        return value
    beside = tensors[0]
    if beside.dim() and beside.is_floating_point() and isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)  # its digits; the dtype of the one with dimensions wins
    return torch.tensor(value, dtype=None if beside.dim() else torch.result_type(beside, value))


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


def _described(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf
    return View.of(leaf) if leaf.is_cuda else leaf.clone()


def _aliased(op: Any, i: int, args: Any, kwargs: Any) -> Any:
    """Return the argument that result ``i`` of an operator is."""
    alias = op._schema.returns[i].alias_info.before_set
    for place, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.before_set == alias:
            return args[place] if place < len(args) else kwargs[argument.name]
    raise AssertionError(op)


def _device(op: Any, tensors: Sequence[Tensor]) -> int:
    """Return the device of an operator's tensors.

    Raises:
        RuntimeError: they are on several.
    """
    devices = {tensor.device for tensor in tensors if tensor.is_cuda or tensor.dim()}
    if len(devices) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {op} got {', '.join(sorted(map(str, devices)))}"
        )
    (device,) = devices
    return int(device.index)


@functools.cache
def _is_view(op: Any) -> bool:
    """True if the operator returns tensors that share memory with an argument, and writes nothing."""
    alias = op._schema.returns[0].alias_info if op._schema.returns else None
    return alias is not None and not alias.is_write


@functools.cache
def _is_read(op: Any) -> bool:
    """True if the host needs values to know the operator's result, or its size."""
    tensors = any("Tensor" in str(result.type) for result in op._schema.returns) or not op._schema.returns
    return not tensors or not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.isdisjoint(op.tags)
