"""Transparent huge pages for large state in memory, which Linux gives on request."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable

from torch import Tensor

#: Bytes of a huge page, and of the smallest tensor that is worth the call.
PAGE, LEAST = 1 << 21, 1 << 22


def ask(tensor: Tensor) -> Tensor:
    """Return the tensor itself (dense, on the CPU), after requesting huge pages; nothing may be written to it before.

    A step reads all state and looks up the address of each page on the way: there are 512 times fewer huge ones. The
    request is advice, as numpy gives for its arrays, so its failure is no error.
    """
    if sys.platform == "linux" and tensor.nbytes >= LEAST:
        first = tensor.data_ptr()
        begin, end = -(-first // PAGE) * PAGE, (first + tensor.nbytes) // PAGE * PAGE  # nothing beside the tensor grows
        if first:  # there is memory: a fake tensor has none
            _madvise()(begin, end - begin, mmap.MADV_HUGEPAGE)
    return tensor


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise
