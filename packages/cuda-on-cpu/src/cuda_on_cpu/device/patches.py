"""What of torch is replaced while there are simulated devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from . import copies, graphs, streams
from .operators import record_stream
from .state import current

#: What devices say that they are.
CAPABILITY, NAME, MULTIPROCESSORS = (9, 0), "simulated CUDA device", 4

#: What torch says that it is built for.
VERSION = "13.0"

#: Functions that make tensors, and take ``pin_memory=True``.
FACTORIES = ("empty", "empty_like", "empty_strided", "zeros", "ones", "full", "tensor", "rand", "randn", "arange")


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing."""


def _mem_get_info(device: Any = None) -> tuple[int, int]:
    memory = current().memory
    return memory.capacity - memory.allocated[streams.index_of(device)], memory.capacity


def _allocated(device: Any = None) -> int:
    return current().memory.allocated[streams.index_of(device)]


def _peak(device: Any = None) -> int:
    return current().memory.peak[streams.index_of(device)]


def _reset_peak(device: Any = None) -> None:
    memory, index = current().memory, streams.index_of(device)
    memory.peak[index] = memory.allocated[index]


def _properties(device: Any = None) -> SimpleNamespace:
    del device
    return SimpleNamespace(
        name=NAME,
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
        multi_processor_count=MULTIPROCESSORS,
        total_memory=current().memory.capacity,
    )


CUDA: dict[str, Any] = {
    "_lazy_init": _nothing,
    "init": _nothing,
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "device_count": lambda: current().devices,
    "current_device": lambda: current().device(),
    "set_device": lambda device: current().set_device(streams.index_of(device)),
    "device": streams.DeviceGuard,
    "Stream": streams.Stream,
    "ExternalStream": streams.ExternalStream,
    "Event": streams.Event,
    "stream": streams.stream,
    "set_stream": streams.set_stream,
    "current_stream": streams.current_stream,
    "default_stream": streams.default_stream,
    "synchronize": streams.synchronize,
    "CUDAGraph": graphs.CUDAGraph,
    "graph": graphs.graph,
    "is_current_stream_capturing": graphs.is_current_stream_capturing,
    "graph_pool_handle": lambda: 0,
    "mem_get_info": _mem_get_info,
    "memory_allocated": _allocated,
    "memory_reserved": _allocated,
    "max_memory_allocated": _peak,
    "reset_peak_memory_stats": _reset_peak,
    "empty_cache": _nothing,
    "get_device_capability": lambda device=None: CAPABILITY,
    "get_device_name": lambda device=None: NAME,
    "get_device_properties": _properties,
}


@contextmanager
def patched() -> Iterator[None]:
    """Replace functions of torch, and put them back."""
    with ExitStack() as stack:
        for name, value in CUDA.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch.version, "cuda", VERSION))
        for name in FACTORIES:
            stack.enter_context(mock.patch.object(torch, name, _pinning(getattr(torch, name))))
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", _pin_memory, create=True))
        stack.enter_context(mock.patch.object(Tensor, "is_pinned", _is_pinned, create=True))
        stack.enter_context(mock.patch.object(Tensor, "record_stream", record_stream, create=True))
        yield


def _pin_memory(self: Tensor, device: Any = None) -> Tensor:
    """Return a copy in pinned memory, or the tensor itself if it is there."""
    del device
    if _is_pinned(self):
        return self
    if self.device.type != "cpu":
        raise RuntimeError(f"cannot pin '{self.type()}': only dense CPU tensors can be pinned")
    like = torch.empty_like(self, device="meta")
    return copies.pinned(like, self.dtype).copy_(self)


def _is_pinned(self: Tensor, device: Any = None) -> bool:
    del device
    return self.device.type == "cpu" and current().memory.pinned_at(self.data_ptr()) is not None


def _pinning(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a factory that knows ``pin_memory=True`` without a driver."""

    @functools.wraps(make)
    def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        if not pin_memory:
            return tensor
        if tensor.device.type != "cpu":
            raise RuntimeError(f"Only dense CPU tensors can be pinned, not those of {tensor.device}")
        return _pin_memory(tensor)

    return made
