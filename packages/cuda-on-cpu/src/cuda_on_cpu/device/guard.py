"""The C++ part of the simulated device: torch's guard of CUDA devices, and tensors over given memory."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from cuda_on_cpu import build

#: Devices that the guard has: torch's engine starts a thread for each at the first backward of a process.
DEVICES = 2


def obstacle() -> str:
    """Return the reason why there can be no simulated device here, or an empty string."""
    if torch.version.cuda is not None or torch.version.hip is not None:
        return f"torch {torch.__version__} is built for GPUs, and a simulated device needs a torch that is not"
    return build.obstacle()


@functools.cache
def library() -> ctypes.CDLL:
    """Build and load the guard. It has to be loaded before the first backward of the process, and stays.

    Raises:
        RuntimeError: this torch has a guard of its own, or there is no compiler.
    """
    if reason := obstacle():
        raise RuntimeError(f"{reason}. pip install torch --index-url https://download.pytorch.org/whl/cpu")
    root = Path(torch.__file__).parent
    flags = (
        "-std=c++20",
        "-O1",
        "-shared",
        "-fPIC",
        f"-I{root / 'include'}",
        f"-L{root / 'lib'}",
        "-lc10",
        "-ltorch_cpu",
    )
    loaded = ctypes.CDLL(str(build.host_library(Path(__file__).parent / "guard.cpp", flags)))
    loaded.install()
    loaded.managed_bytes.restype = ctypes.c_void_p
    loaded.managed_bytes.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int64]
    loaded.next_freed.restype = ctypes.c_int64
    return loaded


def freed() -> Iterator[int]:
    """Yield the numbers of blocks whose last tensors have died since."""
    while number := library().next_freed():
        yield number


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def bytes_at(address: int, size: int, device: int = -1, block: int = 0) -> Tensor:
    """Return uint8[size] over this memory.

    Args:
        address: of the first byte; the caller keeps the memory.
        size: in bytes.
        device: index of the CUDA device that the tensor reports; negative: the CPU.
        block: number that :func:`freed` returns after the last tensor has died; 0: none.
    """
    managed = library().managed_bytes(address, size, device, block)
    return from_dlpack(_new_capsule(managed, b"dltensor", None))
