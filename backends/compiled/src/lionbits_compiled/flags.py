"""Flags of the C++ compiler beyond torch's own. None of them changes a result."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from . import private

#: For GCC alone: memory is prefetched so many instructions before it is needed, for any number of tensors; a loop of
#: sixteen vectors, too short for that, is unrolled.
GCC = (
    "-fprefetch-loop-arrays --param=prefetch-latency=1500 --param=simultaneous-prefetches=200 "
    "--param=min-insn-to-prefetch-ratio=1 --param=max-completely-peeled-insns=5000"
)


def added() -> AbstractContextManager[None]:
    """Let code that is compiled for x86 in this context move vectors whole and prefetch memory.

    torch's code for the bits of a float stores them, copies them in a loop and loads them. Compilers remove that,
    unless the loop's vectors are shorter than torch's, which they prefer on most Intel machines: a load of what
    two stores have just written waits for both, and a step took five times as long.

    torch has a setting for such flags, ``cpp.march``, only since 2.13. In every version it asks its vectors for some.
    """
    theirs = private.vector_flags()
    if "-mavx" not in theirs:
        return nullcontext()
    gcc = GCC if private.is_gcc() else ""
    return private.vector_flags_set(f"{theirs} -mprefer-vector-width={private.vector_bits()} {gcc}".rstrip())
