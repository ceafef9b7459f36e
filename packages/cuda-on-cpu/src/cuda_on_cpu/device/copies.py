"""Copies between the host and the devices, and between devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .faults import CaptureViolation
from .memory import Block
from .schedule import Queue, Work
from .state import World, current
from .views import View


def copy(to: Tensor, source: Tensor, *, non_blocking: bool) -> Tensor:
    """Copy ``source``, broadcast and converted, to ``to``; one of them is on a device. Returns ``to``.

    Only a copy that asks for it, of pinned memory, and of the same bytes on both sides, leaves the host free; memory
    that is not pinned is read before the call returns.
    """
    if not to.numel():
        return to
    source = source.detach().expand(to.size())
    if source.is_conj() or source.is_neg():
        source = source.resolve_conj().resolve_neg()
    if to.is_cuda and source.is_cuda:
        _between(current(), to, source)
    elif to.is_cuda:
        _upload(current(), to, source, non_blocking=non_blocking)
    else:
        _download(current(), to, source, non_blocking=non_blocking)
    return to


def to_other(
    self: Tensor,
    *,
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: Any = None,
) -> Tensor:
    """``tensor.to(device, dtype)``; to the host without waiting, it is pinned."""
    del layout, pin_memory
    dtype = self.dtype if dtype is None else dtype
    there = self.device if device is None else torch.device(device)
    kept = memory_format in (None, torch.preserve_format)
    dense = torch.empty_like(self, device="meta", memory_format=torch.preserve_format if kept else memory_format)
    if there.type == "cpu" and non_blocking:
        made = pinned(dense, dtype)
    else:
        made = torch.empty_strided(dense.size(), dense.stride(), dtype=dtype, device=there)
    return copy(made, self, non_blocking=non_blocking) if there.type != "meta" else made


def pinned(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor of any content in pinned memory, with the size and stride of a meta tensor."""
    span = sum((size - 1) * stride for size, stride in zip(like.size(), like.stride(), strict=True)) + 1
    memory = current().memory.pin(span * dtype.itemsize if like.numel() else 0)
    return memory.view(dtype).as_strided(like.size(), like.stride())


def _between(world: World, to: Tensor, source: Tensor) -> None:
    """Copy on the source's stream, behind the work of the target's, which goes on behind the copy."""
    queue, other = world.current_queue(source.device.index), world.current_queue(to.device.index)
    if queue is not other:
        world.schedule.wait(queue, world.schedule.record(other))
    _submit(world, queue, "copy_ on a device", to, source)
    if queue is not other:
        world.schedule.wait(other, world.schedule.record(queue))


def _upload(world: World, to: Tensor, source: Tensor, *, non_blocking: bool) -> None:
    queue, block = world.current_queue(to.device.index), world.memory.pinned_at(source.data_ptr())
    world.schedule.counts["uploads"] += 1
    if block is not None and non_blocking and _same_bytes(to, source):
        _submit(world, queue, "copy_ from pinned memory", to, source)
        _keep(world, block, queue)
        return
    _forbid(world, queue, "a copy from memory that is not pinned" if block is None else "a copy that waits")
    now = source.to(to.dtype, copy=True)
    target = View.of(to)
    _queue(world, queue, "copy_ from the host", lambda: target.tensor().copy_(now), to)
    if not non_blocking:
        world.synchronize(queue, "a copy from the host without non_blocking=True")


def _download(world: World, to: Tensor, source: Tensor, *, non_blocking: bool) -> None:
    queue, block = world.current_queue(source.device.index), world.memory.pinned_at(to.data_ptr())
    world.schedule.counts["downloads"] += 1
    if block is not None and non_blocking and _same_bytes(to, source):
        _submit(world, queue, "copy_ to pinned memory", to, source)
        _keep(world, block, queue)
        return
    _forbid(world, queue, "a copy to memory that is not pinned" if block is None else "a copy that waits")
    found = View.of(source)
    _queue(world, queue, "copy_ to the host", lambda: to.detach().copy_(found.tensor()), source)
    world.synchronize(queue, "a copy to the host that is not pinned, or without non_blocking=True")


def _forbid(world: World, queue: Queue, what: str) -> None:
    if queue.graph is not None:
        raise CaptureViolation(f"{what} is not permitted while a graph is captured: the host would wait for it")
    world.schedule.forbid_in_capture(what)


def _submit(world: World, queue: Queue, name: str, to: Tensor, source: Tensor) -> None:
    target, found = View.of(to), View.of(source)
    _queue(world, queue, name, lambda: target.tensor().copy_(found.tensor()), to, source)


def _queue(world: World, queue: Queue, name: str, run: Callable[[], Any], *used: Tensor) -> None:
    blocks = world.memory.blocks_at(*(tensor.data_ptr() for tensor in used))
    world.schedule.submit(queue, Work(name, run, blocks))


def _keep(world: World, block: Block, queue: Queue) -> None:
    """Keep pinned memory until a copy is done; a graph may copy it at any time, and nothing keeps it for that."""
    block.uses = [moment for moment in block.uses if not moment.done]
    if queue.graph is None:
        block.uses.append(world.schedule.record(queue))


def _same_bytes(to: Tensor, source: Tensor) -> bool:
    """True if no conversion is needed on either side, for which torch would make a temporary copy."""
    return to.dtype == source.dtype and (
        (to.is_contiguous() and source.is_contiguous()) or (to.stride() == source.stride() and _dense(to))
    )


def _dense(tensor: Tensor) -> bool:
    return bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))
