"""Memory for pages: pinned if a device reads it, plain otherwise, or mapped files that are unlinked.

State of many small parameters shares a page, so that one copy moves them all; a large parameter has memory of its
own. To torch each tensor has a storage of its own, a part of the page, so that pickling, copying or saving a tensor
takes no more than its own bytes.

Files are mapped shared: state that is larger than memory cannot be mapped privately. So a forked process reaches the
files of its parent; :func:`check_process` refuses to use them there.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack
from torch.utils.weak import WeakTensorKeyDictionary

from lionbits_reference.spec import TensorSpec

#: Bytes that tensors in a page begin at multiples of: of a cache line, and of what any kernel wants.
ALIGNMENT = 64

Specs = Mapping[str, TensorSpec]

#: This process, unless it has been forked since.
_PROCESS = os.getpid()


class Home(NamedTuple):
    """The place of a tensor: its page, its first byte there, and the process that made the file (0: it is memory)."""

    page: Tensor
    at: int
    maker: int


#: Place of each tensor in a page, for as long as the tensor lives.
_homes = WeakTensorKeyDictionary()

#: Bytes that are written at a time to a file, where room in it cannot be reserved.
_CHUNK = 1 << 20


def allocate(
    wanted: Sequence[Specs], page_size: int, folder: str | Path | None, *, pinned: bool
) -> list[dict[str, Tensor]]:
    """Return zeroed state tensors on the host for each of the specs.

    Raises:
        OSError: the folder has no room for a file.
    """
    made: list[dict[str, Tensor]] = [{} for _ in wanted]
    for run in _runs([size(specs) for specs in wanted], page_size):
        for dtype in dict.fromkeys(spec.dtype for j in run for spec in wanted[j].values()):
            specs = [(j, key, spec) for j in run for key, spec in wanted[j].items() if spec.dtype == dtype]
            page = _memory(sum(_padded(bytes_of(spec)) for _, _, spec in specs), folder, pinned=pinned)
            at, maker = 0, 0 if folder is None else os.getpid()
            for j, key, spec in specs:
                home = Home(page, at, maker)
                view, at = carve(page, at, spec)
                made[j][key] = tensor = from_dlpack(
                    view.__dlpack__()
                )  # the capsule: DLPack's names for devices know no pinned memory
                _homes[tensor] = home
    return made


def place(tensor: Tensor) -> tuple[torch.UntypedStorage, int]:
    """Return the storage of a tensor's page, and the byte of it at which the tensor begins.

    A tensor that is in no page has its own storage.
    """
    home: Home | None = _homes.get(tensor)
    if home is None:
        return tensor.untyped_storage(), int(tensor.storage_offset()) * tensor.itemsize
    return home.page.untyped_storage(), home.at


def check_process(states: Iterable[object]) -> None:
    """Refuse state in files of another process, from which this one was forked.

    Raises:
        RuntimeError: naming both processes.
    """
    here = os.getpid()
    if here == _PROCESS:
        return
    held = (state.values() for state in states if isinstance(state, Mapping))  # others' notes may be anything
    tensors = (value for values in held for value in values if isinstance(value, Tensor))
    for home in filter(None, map(_homes.get, tensors)):
        if home.maker not in (0, here):
            raise RuntimeError(
                f"state is in files of page_dir that process {home.maker} uses, from which this process {here} was "
                f"forked: each would see the other's changes. Here, call load_state_dict with a copy of a state dict "
                f"that was taken before the fork, or make the optimizer after it."
            )


def size(specs: Specs) -> int:
    """Return the bytes that the tensors of a parameter take in pages."""
    return sum(_padded(bytes_of(spec)) for spec in specs.values())


def carve(page: Tensor, at: int, spec: TensorSpec) -> tuple[Tensor, int]:
    """Return the tensor that begins at byte ``at`` of a page, and the byte at which the next one may begin."""
    return page[at : at + bytes_of(spec)].view(spec.dtype).view(spec.shape), at + _padded(bytes_of(spec))


def bytes_of(spec: TensorSpec) -> int:
    """Return the bytes of a tensor."""
    return torch.Size(spec.shape).numel() * spec.dtype.itemsize


def _runs(sizes: Sequence[int], page_size: int) -> list[range]:
    """Group neighbours that share memory: as many as a page holds, or one that is larger."""
    runs, first, total = [], 0, 0
    for j, taken in enumerate(sizes):
        if j > first and total + taken > page_size:
            runs.append(range(first, j))
            first, total = j, 0
        total += taken
    if first < len(sizes):
        runs.append(range(first, len(sizes)))
    return runs


def _memory(count: int, folder: str | Path | None, *, pinned: bool) -> Tensor:
    """Return ``count`` zeroed bytes."""
    if folder is None or count == 0:
        return torch.zeros(count, dtype=torch.uint8, device="cpu", pin_memory=pinned)
    handle, name = tempfile.mkstemp(prefix="lionbits-", suffix=".page", dir=folder)
    try:
        reserve(handle, count)
        return torch.from_file(name, shared=True, size=count, dtype=torch.uint8, device="cpu")
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror}: page_dir has to hold {count:,} bytes more", str(folder)
        ) from error
    finally:
        os.close(handle)
        Path(name).unlink()  # the file lives as long as its memory is mapped


def reserve(handle: int, count: int) -> None:
    """Fill an empty file with ``count`` zero bytes that are allocated on the disk.

    A sparse file would get its disk blocks when it is written to. If there is no room then, a signal ends the process
    instead of an error.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle, 0, count)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that reserves nothing
                raise
        else:
            return
    for begin in range(0, count, _CHUNK):
        left = memoryview(bytes(min(_CHUNK, count - begin)))
        while left:
            left = left[os.write(handle, left) :]


def _padded(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
