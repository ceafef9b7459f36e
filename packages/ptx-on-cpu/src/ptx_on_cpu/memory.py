"""Memory that kernels may touch: registered buffers of the host, at the host's own addresses."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .faults import MemoryFault, Place
from .types import UNSIGNED, Array


@dataclass(frozen=True)
class Buffer:
    """A range of memory that a kernel may touch.

    Attributes:
        address: of the first byte.
        bytes: size.
        name: as errors call it.
    """

    address: int
    bytes: int
    name: str = "buffer"


class Memory:
    """The buffers of a launch. Parts of no buffer are never touched, so that a kernel cannot harm the process.

    Args:
        buffers: they may overlap; where two touch, an access beyond the end of one is not seen.
    """

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self.buffers = sorted({each for each in buffers if each.bytes}, key=lambda each: (each.address, each.bytes))
        starts: list[int] = []
        ends: list[int] = []
        for each in self.buffers:  # buffers that overlap are one range
            if starts and each.address < ends[-1]:
                ends[-1] = max(ends[-1], each.address + each.bytes)
            else:
                starts.append(each.address)
                ends.append(each.address + each.bytes)
        self._starts, self._ends = (np.array(each, dtype=np.uint64) for each in (starts, ends))
        self._first = starts[0] & ~15 if starts else 0
        self._views: dict[int, Array] = {}
        self._span = (ends[-1] - self._first + 15) & ~15 if starts else 0

    def check(self, addresses: Array, size: int, place: Place) -> None:
        """Check that all these addresses, each of ``size`` bytes, are aligned and inside buffers.

        Raises:
            MemoryFault: one of them is not.
        """
        misaligned = (addresses & np.uint64(size - 1)) != 0
        if misaligned.any():
            address = int(addresses[misaligned][0])
            raise MemoryFault(
                place, f"address {address:#x} of {size} bytes is not aligned to {size}; {self.nearest(address)}"
            )
        last = np.searchsorted(self._starts, addresses, side="right") - 1
        inside = last >= 0
        if len(self._ends):
            inside &= addresses + np.uint64(size) <= self._ends[last]
        if not inside.all():
            address = int(addresses[~inside][0])
            raise MemoryFault(
                place, f"address {address:#x} of {size} bytes is outside all buffers; {self.nearest(address)}"
            )

    def nearest(self, address: int) -> str:
        """Return where an address is, by the buffer that it is in or that is nearest."""
        if not self.buffers:
            return "there is none"

        def distance(each: Buffer) -> int:
            return max(each.address - address, address - (each.address + each.bytes) + 1, 0)

        found = min(self.buffers, key=distance)
        return f"it is {address - found.address} bytes into {found.name} of {found.bytes} bytes"

    def load(self, addresses: Array, bits: int) -> Array:
        """Return values of so many bits at addresses that :meth:`check` has seen."""
        found: Array = self._view(bits)[self._index(addresses, bits)]
        return found

    def store(self, addresses: Array, bits: int, values: Array) -> None:
        """Store values of so many bits at addresses that :meth:`check` has seen; of two to one address, the last."""
        self._view(bits)[self._index(addresses, bits)] = values

    def _index(self, addresses: Array, bits: int) -> Array:
        return (addresses - np.uint64(self._first)) >> np.uint64((bits // 8).bit_length() - 1)

    def _view(self, bits: int) -> Array:
        """Return everything from the first buffer to the last as numbers of a width: a view, never read as a whole."""
        if bits not in self._views:
            plain: Any = (ctypes.c_ubyte * self._span).from_address(self._first)
            self._views[bits] = np.frombuffer(plain, dtype=np.uint8).view(UNSIGNED[bits])
        return self._views[bits]


class Shared:
    """The shared memory of several thread blocks, undefined at first.

    Args:
        blocks: number of thread blocks.
        size: bytes of each.
    """

    def __init__(self, blocks: int, size: int) -> None:
        self._size, self._pitch = size, (size + 15) & ~15
        self._values = np.full(blocks * self._pitch, 0xA5, dtype=np.uint8)
        self._undefined = np.full(blocks * self._pitch, 0xFF, dtype=np.uint8)

    def check(self, addresses: Array, size: int, place: Place) -> None:
        """Check that these addresses within a thread block's shared memory, each of ``size`` bytes, are good.

        Raises:
            MemoryFault: one of them is misaligned or beyond the end.
        """
        if ((addresses & np.uint64(size - 1)) != 0).any():
            wrong = int(addresses[(addresses & np.uint64(size - 1)) != 0][0])
            raise MemoryFault(place, f"shared address {wrong:#x} of {size} bytes is not aligned to {size}")
        if (
            beyond := (addresses > np.uint64(self._size)) | (addresses + np.uint64(size) > np.uint64(self._size))
        ).any():
            wrong = int(addresses[beyond][0])
            raise MemoryFault(
                place, f"shared address {wrong:#x} of {size} bytes is outside the {self._size} bytes that there are"
            )

    def load(self, blocks: Array, addresses: Array, bits: int) -> tuple[Array, Array]:
        """Return values of so many bits, and their undefined bits."""
        at = self._index(blocks, addresses, bits)
        return self._values.view(UNSIGNED[bits])[at], self._undefined.view(UNSIGNED[bits])[at]

    def store(self, blocks: Array, addresses: Array, bits: int, values: Array, undefined: Array) -> None:
        """Store values of so many bits, with their undefined bits."""
        at = self._index(blocks, addresses, bits)
        self._values.view(UNSIGNED[bits])[at] = values
        self._undefined.view(UNSIGNED[bits])[at] = undefined

    def _index(self, blocks: Array, addresses: Array, bits: int) -> Array:
        return (blocks * self._pitch + addresses.astype(np.int64)) // (bits // 8)
