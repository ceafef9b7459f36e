// Intrinsics on one thread's numbers. The compiler contracts nothing (-ffp-contract=off): every operation rounds once.

#pragma once

#include "language.h"

// --- floats ---------------------------------------------------------------------------------------------

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return __builtin_sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float rsqrtf(float a) { return 1.0f / __builtin_sqrtf(a); }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }  // NaN gives 0

// --- bits and conversions -------------------------------------------------------------------------------

namespace cuda_on_cpu {

template <class To, class From>
inline To same_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To result;
    __builtin_memcpy(&result, &value, sizeof value);
    return result;
}

// As on the device: what does not fit becomes the nearest number that does, and NaN becomes 0.
template <class To>
inline To saturated(float whole, float lowest, float beyond) {
    if (whole != whole) return 0;
    if (whole < lowest) return To(lowest);
    return whole >= beyond ? To(~To(0) ^ To(lowest)) : To(whole);
}

}  // namespace cuda_on_cpu

inline unsigned __float_as_uint(float x) { return cuda_on_cpu::same_bits<unsigned>(x); }
inline int __float_as_int(float x) { return cuda_on_cpu::same_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::same_bits<float>(x); }
inline float __int_as_float(int x) { return cuda_on_cpu::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_on_cpu::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_on_cpu::same_bits<double>(x); }

inline int __float2int_rn(float x) { return cuda_on_cpu::saturated<int>(__builtin_rintf(x), -0x1p31f, 0x1p31f); }
inline int __float2int_rz(float x) { return cuda_on_cpu::saturated<int>(__builtin_truncf(x), -0x1p31f, 0x1p31f); }
inline unsigned __float2uint_rn(float x) { return cuda_on_cpu::saturated<unsigned>(__builtin_rintf(x), 0, 0x1p32f); }
inline unsigned __float2uint_rz(float x) { return cuda_on_cpu::saturated<unsigned>(__builtin_truncf(x), 0, 0x1p32f); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }

// --- integers -------------------------------------------------------------------------------------------

inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

inline unsigned __brev(unsigned x) {
    unsigned result = 0;
    for (int i = 0; i < 32; ++i) result |= (x >> i & 1) << (31 - i);
    return result;
}

// Four bytes of the eight in y:x, chosen by the nibbles of s.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
    const unsigned long long bytes = (unsigned long long)y << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> (s >> 4 * i & 7) * 8 & 0xFF) << 8 * i;
    return result;
}

// high:low, shifted by 0..31 bits: its upper, or lower, half.
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned(((unsigned long long)high << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned(((unsigned long long)high << 32 | low) >> (shift & 31));
}

// Of two types, in a third.
#define CUDA_ON_CPU_MIN_MAX(result, a_type, b_type)          \
    inline result min(a_type a, b_type b) {                  \
        const result x = static_cast<result>(a), y = static_cast<result>(b); \
        return x < y ? x : y;                                \
    }                                                        \
    inline result max(a_type a, b_type b) {                  \
        const result x = static_cast<result>(a), y = static_cast<result>(b); \
        return x < y ? y : x;                                \
    }

CUDA_ON_CPU_MIN_MAX(int, int, int)
CUDA_ON_CPU_MIN_MAX(unsigned, unsigned, unsigned)
CUDA_ON_CPU_MIN_MAX(unsigned, int, unsigned)
CUDA_ON_CPU_MIN_MAX(unsigned, unsigned, int)
CUDA_ON_CPU_MIN_MAX(long, long, long)
CUDA_ON_CPU_MIN_MAX(unsigned long, unsigned long, unsigned long)
CUDA_ON_CPU_MIN_MAX(long long, long long, long long)
CUDA_ON_CPU_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)

#undef CUDA_ON_CPU_MIN_MAX

inline float min(float a, float b) { return __builtin_fminf(a, b); }  // of a number and a NaN, the number
inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
inline double min(double a, double b) { return __builtin_fmin(a, b); }
inline double max(double a, double b) { return __builtin_fmax(a, b); }

// --- memory ---------------------------------------------------------------------------------------------

template <class T> inline T __ldg(const T* address) { return *address; }
template <class T> inline T __ldca(const T* address) { return *address; }
template <class T> inline T __ldcg(const T* address) { return *address; }
template <class T> inline T __ldcs(const T* address) { return *address; }
template <class T> inline void __stcg(T* address, T value) { *address = value; }
template <class T> inline void __stcs(T* address, T value) { *address = value; }
template <class T> inline void __stwt(T* address, T value) { *address = value; }

inline void* __cvta_global_to_generic(size_t address) { return (void*)address; }
inline size_t __cvta_generic_to_global(const void* address) { return size_t(address); }
