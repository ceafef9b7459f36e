"""What the C++ compiler is told beyond torch's own flags. None of it changes a result."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from . import private

#: Of GCC alone: memory is asked for so many instructions before it is needed, and for any number of tensors; a loop of
#: sixteen vectors, too short for that, is written out.
GCC = (
    "-fprefetch-loop-arrays --param=prefetch-latency=1500 --param=simultaneous-prefetches=200 "
    "--param=min-insn-to-prefetch-ratio=1 --param=max-completely-peeled-insns=5000"
)


def added() -> AbstractContextManager[None]:
    """Have what is compiled meanwhile for x86 move vectors whole, and ask for memory early.

    torch's code for the bits of a float stores them, copies them in a loop and loads them. Compilers see through that,
    unless the loop's vectors are shorter than torch's, as they prefer them on most machines of Intel: a load of what
    two stores have only just written waits for both, and a step took five times as long.

    torch has a setting for such flags, ``cpp.march``, only since 2.13. In every version it asks its vectors for some.
    """
    theirs = private.vector_flags()
    if "-mavx" not in theirs:
        return nullcontext()
    gcc = GCC if private.is_gcc() else ""
    return private.vector_flags_set(f"{theirs} -mprefer-vector-width={private.vector_bits()} {gcc}".rstrip())
