"""The backends on simulated CUDA devices: their kernels are queued on the stream that a launch names."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import random
import struct
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from lionbits import self_test
from lionbits_reference.spec import Plan

device = pytest.importorskip("cuda_on_cpu.device", reason="it simulates the devices")
if _OBSTACLE := device.obstacle():
    pytest.skip(_OBSTACLE, allow_module_level=True)

#: Backends that run on it.
BACKENDS = ("reference", "cupy", "triton")


@contextmanager
def simulated(seed: int, backend: str = "reference", self_tested: bool = False, **more: Any) -> Iterator[Any]:
    """Simulated devices, on which a backend serves, with or without its self-test before the first step."""
    with device.simulated_cuda(seed, **more) as devices, ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, {self_test.ENVIRONMENT: "1" if self_tested else "0"}))
        if backend == "cupy":
            _serve_cupy(stack, seed)
        elif backend == "triton":
            _serve_triton(stack)
        yield devices


def _serve_cupy(stack: ExitStack, seed: int) -> None:
    """Let launches find a CuPy whose kernels are built by g++."""
    launch = importlib.import_module("lionbits_cupy.launch")
    chance = random.Random(seed)
    kernels: dict[Plan, dict[str, Any]] = {}

    def functions(plan: Plan, index: int) -> dict[str, Any]:
        del index
        if plan not in kernels:
            kernels[plan] = {name: _kernel(plan, name, chance) for name in launch.KERNELS}
        return kernels[plan]

    cuda: Any = ModuleType("cupy.cuda")
    cuda.Device, cuda.ExternalStream = lambda index: contextlib.nullcontext(), _deprecated
    cuda.Stream = SimpleNamespace(from_external=_stream)
    cupy = ModuleType("cupy")
    cupy.__spec__ = ModuleSpec("cupy", None)  # so that it counts as installed
    cupy.cuda = cuda  # type: ignore[attr-defined]
    for name, module in (("cupy", cupy), ("cupy.cuda", cuda)):
        stack.callback(_put_back, name, sys.modules.get(name))
        sys.modules[name] = module
    nvrtc = SimpleNamespace(getVersion=lambda: (13, 0), getSupportedArchs=lambda: [90])
    build = importlib.import_module("lionbits_cupy.build")
    stack.enter_context(mock.patch.object(build, "_nvrtc", return_value=nvrtc))
    stack.enter_context(mock.patch.object(launch, "_functions", functions))
    launch.architecture.cache_clear()
    launch._multiprocessors.cache_clear()


def _put_back(name: str, module: ModuleType | None) -> None:
    """Restore a module alone: others that were imported meanwhile, as Triton, cannot be imported twice."""
    if module is None:
        del sys.modules[name]
    else:
        sys.modules[name] = module


def _stream(found: Any) -> SimpleNamespace:
    """A stream as CuPy makes it of another library's."""
    return SimpleNamespace(ptr=found.__cuda_stream__()[1])


def _deprecated(address: int) -> SimpleNamespace:
    """What CuPy 14 says of ``ExternalStream``."""
    warnings.warn("ExternalStream is deprecated", DeprecationWarning, stacklevel=2)
    return SimpleNamespace(ptr=address)


def _kernel(plan: Plan, name: str, chance: random.Random) -> Callable[..., None]:
    from lionbits_cupy import emulate
    from lionbits_cupy.source import numbers

    library, values = emulate.module(), numbers(plan)
    plain = struct.pack("".join("f" if isinstance(value, float) else "i" for value in values), *values)

    def kernel(grid: tuple[int], block: tuple[int], arguments: Sequence[Any], stream: SimpleNamespace) -> None:
        order = chance.randrange(1 << 32)

        def run() -> None:
            ctypes.memmove(library.get_global("PLAN"), plain, len(plain))
            library.get_function(name)((min(grid[0], 1 + order % 3),), block, tuple(arguments), seed=order)

        device.launch(name, run, stream.ptr, [value for value in arguments if isinstance(value, int)])

    return kernel


def _serve_triton(stack: ExitStack) -> None:
    """Let Triton's interpreter run when the stream reaches a launch."""
    backend = importlib.import_module("lionbits_triton.backend")
    package = importlib.import_module("lionbits_triton")
    original = backend.launch

    def launch(kernel: Any, prepared: Any, *arguments: Any, **constants: Any) -> None:
        table = prepared.table
        given = [device.View.of(value) if isinstance(value, Tensor) else value for value in arguments]
        parts = {key: device.View.of(getattr(table, key)) for key in ("slots", "calls", "items")}

        def run() -> None:
            own = SimpleNamespace(**{key: view.tensor() for key, view in parts.items()})
            values = [value.tensor() if isinstance(value, device.View) else value for value in given]
            original(kernel, prepared._replace(table=own), *values, **constants)

        used = [view.address for view in (*given, *parts.values()) if isinstance(view, device.View)]
        device.launch(str(kernel), run, torch.cuda.current_stream(table.items.device).cuda_stream, used)

    for module in (backend, package):
        stack.enter_context(mock.patch.object(module, "supports", return_value=""))
    stack.enter_context(mock.patch.object(backend, "launch", launch))
