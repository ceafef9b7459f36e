// What threads do together. Here a thread may have to wait, and others run: see runtime.cpp.

#pragma once

#include "arithmetic.h"
#include "runtime.h"

// --- barriers and fences --------------------------------------------------------------------------------

inline void __syncthreads() { cuda_on_cpu::meet_block(); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFF) { cuda_on_cpu::meet(cuda_on_cpu::SYNCWARP, mask); }

// The order of memory accesses is the program's.
inline void __threadfence() { __asm__ volatile("" ::: "memory"); }
inline void __threadfence_block() { __threadfence(); }
inline void __threadfence_system() { __threadfence(); }

// --- shuffles -------------------------------------------------------------------------------------------

namespace cuda_on_cpu {

template <class T>
inline T shuffle(unsigned mask, T value, unsigned from) {
    static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
    unsigned long long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = meet(SHUFFLE, mask, bits, from);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// The lanes first..last, of `width`, to which this one belongs.
struct Segment {
    unsigned lane, first, last;

    explicit Segment(int width) : lane(current_lane()), first(lane & ~(width - 1)), last(lane | (width - 1)) {
        if (width <= 0 || width > warpSize || (width & (width - 1)) != 0)
            refuse("the width of a shuffle is a power of two, 32 at most");
    }

    unsigned or_self(bool inside, unsigned from) const { return inside ? from : lane; }
};

}  // namespace cuda_on_cpu

template <class T>
inline T __shfl_sync(unsigned mask, T value, int from, int width = warpSize) {
    const cuda_on_cpu::Segment segment(width);
    return cuda_on_cpu::shuffle(mask, value, segment.first | (from & (width - 1)));
}

// As the device does: lanes of earlier segments can be read from, those of later ones cannot.
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize) {
    const cuda_on_cpu::Segment segment(width);
    const unsigned from = segment.lane ^ (lane_mask & 31);
    return cuda_on_cpu::shuffle(mask, value, segment.or_self(from <= segment.last, from));
}

template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
    const cuda_on_cpu::Segment segment(width);
    const unsigned below = delta & 31;
    return cuda_on_cpu::shuffle(
        mask, value, segment.or_self(segment.lane >= segment.first + below, segment.lane - below));
}

template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
    const cuda_on_cpu::Segment segment(width);
    const unsigned from = segment.lane + (delta & 31);
    return cuda_on_cpu::shuffle(mask, value, segment.or_self(from <= segment.last, from));
}

// --- votes and reductions -------------------------------------------------------------------------------

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return unsigned(cuda_on_cpu::meet(cuda_on_cpu::VOTE, mask, predicate != 0));
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate == 0) == 0; }

// Values are widened with their sign, so that one comparison serves both types.
#define CUDA_ON_CPU_REDUCE(name, meeting, type)                                                       \
    inline type name(unsigned mask, type value) {                                                     \
        return type(cuda_on_cpu::meet(cuda_on_cpu::meeting, mask, (unsigned long long)(long long)value)); \
    }

CUDA_ON_CPU_REDUCE(__reduce_add_sync, ADD, int)
CUDA_ON_CPU_REDUCE(__reduce_add_sync, ADD, unsigned)
CUDA_ON_CPU_REDUCE(__reduce_max_sync, MAX, int)
CUDA_ON_CPU_REDUCE(__reduce_max_sync, MAX, unsigned)
CUDA_ON_CPU_REDUCE(__reduce_min_sync, MIN, int)
CUDA_ON_CPU_REDUCE(__reduce_min_sync, MIN, unsigned)

#undef CUDA_ON_CPU_REDUCE

// --- atomics --------------------------------------------------------------------------------------------

// Threads take turns only where they wait, so that plain accesses are atomic.
#define CUDA_ON_CPU_ATOMIC(name, type, updated)       \
    inline type name(type* address, type value) {     \
        const type old = *address;                    \
        *address = updated;                           \
        return old;                                   \
    }

#define CUDA_ON_CPU_ATOMICS(type)                                           \
    CUDA_ON_CPU_ATOMIC(atomicExch, type, value)                             \
    CUDA_ON_CPU_ATOMIC(atomicMax, type, old < value ? value : old)          \
    CUDA_ON_CPU_ATOMIC(atomicMin, type, value < old ? value : old)          \
    CUDA_ON_CPU_ATOMIC(atomicAnd, type, old & value)                        \
    CUDA_ON_CPU_ATOMIC(atomicOr, type, old | value)                         \
    CUDA_ON_CPU_ATOMIC(atomicXor, type, old ^ value)                        \
    inline type atomicCAS(type* address, type expected, type value) {       \
        const type old = *address;                                          \
        if (old == expected) *address = value;                              \
        return old;                                                         \
    }

CUDA_ON_CPU_ATOMICS(int)
CUDA_ON_CPU_ATOMICS(unsigned)
CUDA_ON_CPU_ATOMICS(unsigned long long)
CUDA_ON_CPU_ATOMIC(atomicAdd, int, int(unsigned(old) + unsigned(value)))  // wraps
CUDA_ON_CPU_ATOMIC(atomicAdd, unsigned, old + value)
CUDA_ON_CPU_ATOMIC(atomicAdd, unsigned long long, old + value)
CUDA_ON_CPU_ATOMIC(atomicAdd, float, old + value)
CUDA_ON_CPU_ATOMIC(atomicAdd, double, old + value)
CUDA_ON_CPU_ATOMIC(atomicSub, int, int(unsigned(old) - unsigned(value)))
CUDA_ON_CPU_ATOMIC(atomicSub, unsigned, old - value)
CUDA_ON_CPU_ATOMIC(atomicExch, float, value)

#undef CUDA_ON_CPU_ATOMICS
#undef CUDA_ON_CPU_ATOMIC
