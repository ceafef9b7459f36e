// Qualifiers, vector types and built-in variables.

#pragma once

#include <math.h>
#include <stddef.h>

// --- qualifiers -----------------------------------------------------------------------------------------

#ifndef __global__  // it keeps its name while the preprocessed text is searched for kernels
#define __global__
#endif
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))

// A library's thread-local variables, those of templates too, lie together, so that the runtime finds and poisons them.
// All threads of a block run in one thread of the CPU, and thus share them.
#define __shared__ static thread_local

extern "C" int printf(const char*, ...);

// --- vectors --------------------------------------------------------------------------------------------

#define CUDA_ON_CPU_VECTORS(name, type, align2, align4)                            \
    struct name##1 { type x; };                                                    \
    struct __align__(align2) name##2 { type x, y; };                               \
    struct name##3 { type x, y, z; };                                              \
    struct __align__(align4) name##4 { type x, y, z, w; };                         \
    inline name##1 make_##name##1(type x) { return {x}; }                          \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }               \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }    \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

CUDA_ON_CPU_VECTORS(char, signed char, 2, 4)
CUDA_ON_CPU_VECTORS(uchar, unsigned char, 2, 4)
CUDA_ON_CPU_VECTORS(short, short, 4, 8)
CUDA_ON_CPU_VECTORS(ushort, unsigned short, 4, 8)
CUDA_ON_CPU_VECTORS(int, int, 8, 16)
CUDA_ON_CPU_VECTORS(uint, unsigned, 8, 16)
CUDA_ON_CPU_VECTORS(longlong, long long, 16, 16)
CUDA_ON_CPU_VECTORS(ulonglong, unsigned long long, 16, 16)
CUDA_ON_CPU_VECTORS(float, float, 8, 16)
CUDA_ON_CPU_VECTORS(double, double, 16, 16)

#undef CUDA_ON_CPU_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};

// --- built-in variables ---------------------------------------------------------------------------------

extern uint3 threadIdx, blockIdx;  // of the thread that runs: set whenever another one's turn comes
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;
