// Lion's arithmetic on one element: the rule, codes, rounding noise, 16-bit floats. No addresses here.
//
// Every written operation rounds once: the build forbids contraction (-ffp-contract=off). All functions are free of
// branches that a compiler could not turn into selections, so that loops over them become vector instructions. x86 is
// slow on subnormal numbers, so codes are made and read without any. Bits are unsigned: shifts are logical, sums wrap.

#pragma once

#include <cstdint>
#include <cstring>

using int64 = std::int64_t;
using uint64 = std::uint64_t;
using int32 = std::int32_t;
using uint32 = std::uint32_t;
using uint16 = std::uint16_t;
using uint8 = std::uint8_t;

#define LIONBITS_INLINE inline __attribute__((always_inline))

enum Dtype { FLOAT32, BFLOAT16, FLOAT16 };
enum Caution { NONE, MASK, GRADIENT };
enum Rounding { NEAREST, DITHERED, STOCHASTIC, COMPENSATED };

constexpr uint32 STATE = 0, PARAMETER = 1;  // purposes of a salt

constexpr uint32 ONE = 0x3F800000, TWO = 0x40000000;  // as the bits of a float
constexpr uint32 INFINITE = 0x7F800000;               // bits of |x| from here on are those of infinity or a NaN
constexpr uint32 SIGN = 0x80000000, NOT_A_NUMBER = 0x7FC00000;
constexpr float TINY = 0x1p-100f, HUGEST = 0x1p127f;

LIONBITS_INLINE uint32 bits_of(float x) {
    uint32 bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

LIONBITS_INLINE float float_of(uint32 bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// The bits of |x|: ordered like the numbers, infinity next to last, NaN last.
LIONBITS_INLINE uint32 magnitude(float x) { return bits_of(x) & ~SIGN; }

LIONBITS_INLINE bool finite(float x) { return magnitude(x) < INFINITE; }

// --- the rule ---------------------------------------------------------------------------------------------

struct Numbers {  // of a slot
    float lr, still;  // how far an element moves, and one that does not: lr * 0
    float keep, grad_scale, b1, one_minus_b1, b2, one_minus_b2;
};

// m*b + g*(1-b), three roundings.
LIONBITS_INLINE float blend(float m, float g, float b, float one_minus_b) { return m * b + g * one_minus_b; }

// Whether both have the same sign, and that is not zero.
LIONBITS_INLINE bool agree(float x, float y) { return (x > 0 && y > 0) || (x < 0 && y < 0); }

// lr * sign(x): the rate with x's sign; lr * 0 for a zero and for a NaN.
LIONBITS_INLINE float towards(const Numbers& n, float x) {
    const float signed_rate = float_of(bits_of(n.lr) ^ (bits_of(x) & SIGN));
    return __builtin_islessgreater(x, 0.0f) ? signed_rate : n.still;
}

// lr * u, u being the sign of c after caution. Signs are compared, not products, which can underflow.
template <int CAUTION>
LIONBITS_INLINE float move(float m, float g, const Numbers& n) {
    const float c = blend(m, g, n.b1, n.one_minus_b1);
    if (CAUTION == MASK) return agree(c, g) ? towards(n, c) : n.still;
    if (CAUTION == GRADIENT) return agree(c, -g) ? towards(n, g) : towards(n, c);
    return towards(n, c);
}

// --- codes ------------------------------------------------------------------------------------------------

struct Format {
    int32 bits, shift, largest_code;
    float top;
    uint32 magnitude;  // its bits of a code in the highest bits of a byte
    int32 up;          // how far those are shifted to stand as the bits of a float
};

// 2x - 2, which is exact for 1 <= x: fused, where that is an instruction, it is the same.
LIONBITS_INLINE float twice_less_two(float x) {
#ifdef __FMA__
    return __builtin_fmaf(x, 2.0f, -2.0f);
#else
    return x * 2.0f - 2.0f;
#endif
}

// m of a code, shifted to the highest bits of a byte, before scaling. As the bits of 1.f * 2^e these are right for
// e > 0; for e = 0 they say 1 + f/2^Y where f * 2^(1-Y) is meant, which is the smaller of the two. The bits of positive
// floats sort as the floats do.
LIONBITS_INLINE float value(uint8 code, const Format& format) {
    const uint32 extended = uint32(int32(std::int8_t(code)));  // so that its sign stands where a float has it
    const uint32 normal = ((extended & format.magnitude) << format.up) + ONE;
    const uint32 subnormal = bits_of(twice_less_two(float_of(normal)));
    return float_of((normal < subnormal ? normal : subnormal) | (extended & SIGN));
}

struct Block {  // what encoding needs of a block
    float inverse;  // r = top / absmax; 0 where a block holds nothing or is not finite
    int32 limit;    // the largest code, 0 likewise
    float scale;    // absmax / top; 0 where a block holds nothing, NaN where it is not finite
};

// absmax = min(absmax, 2^127), so that top * scale stays finite.
LIONBITS_INLINE Block block_of(float absmax, const Format& format) {
    if (!finite(absmax)) return {0.0f, 0, float_of(NOT_A_NUMBER)};
    if (!(absmax > TINY)) return {0.0f, 0, 0.0f};
    const float held = absmax > HUGEST ? HUGEST : absmax;
    return {format.top / held, format.largest_code, held / format.top};
}

// The code of m: t = bits(|m| * r * 2^-127), k = min((t + dither) >> w, largest k), the sign kept unless k = 0. With
// y = |m| * r, t is rint(y * 2^22) for y < 2 and bits(y) - bits(1) above, and the larger of the two everywhere if y is
// held at 2 in the first. A sum with 2^23 rounds to a whole number, which its lowest bits are.
LIONBITS_INLINE uint32 encode(float m, const Block& block, uint32 noise, const Format& format) {
    constexpr float WHOLE = 0x1p23f;
    const uint32 y = magnitude(m * block.inverse);
    const float held = float_of(y < TWO ? y : TWO);
    const int32 below = int32(bits_of(held * 0x1p22f + WHOLE) - bits_of(WHOLE)), above = int32(y - ONE);
    const int32 t = below > above ? below : above;
    const int32 rounded = (t + int32(noise << (format.shift - 16))) >> format.shift;
    const int32 k = rounded < block.limit ? rounded : block.limit;
    return k > 0 && bits_of(m) >= SIGN ? uint32(k + format.largest_code + 1) : uint32(k);
}

// --- rounding noise ---------------------------------------------------------------------------------------

// MurmurHash3's 32-bit finalizer.
LIONBITS_INLINE uint32 fmix32(uint32 h) {
    h = (h ^ h >> 16) * 0x85EBCA6B;
    h = (h ^ h >> 13) * 0xC2B2AE35;
    return h ^ h >> 16;
}

// What tells the noise of one parameter and purpose from all others.
LIONBITS_INLINE uint32 salt(uint64 seed, uint32 index, uint32 purpose) {
    const uint32 mixed = fmix32(fmix32(uint32(seed)) ^ uint32(seed >> 32));
    return fmix32(fmix32(mixed ^ index) ^ purpose);
}

struct Dither {  // what the noise of a slot is made of
    int32 rounding;  // Rounding; NEAREST: all noise is half of what is dropped
    uint32 salt;
    uint32 phase;  // how far the golden-ratio sequence of "dithered" has come, below 2^16
};

LIONBITS_INLINE Dither dither_of(int rounding, uint32 salted, uint32 step) {
    if (rounding == STOCHASTIC) return {rounding, fmix32(salted ^ step * 0x9E3779B9), 0};
    if (rounding == NEAREST) return {rounding, salted, 0};
    return {rounding, salted, step * 40503 & 0xFFFF};
}

// --- 16-bit floats ----------------------------------------------------------------------------------------

LIONBITS_INLINE float widen_bfloat(uint16 stored) { return float_of(uint32(stored) << 16); }

LIONBITS_INLINE float widen_half(uint16 stored) {
    const uint32 sign = (stored & 0x8000u) << 16, unsigned_bits = (stored & 0x7FFFu) << 13;
    const uint32 normal = unsigned_bits + (112u << 23);
    const uint32 subnormal = bits_of(float_of(unsigned_bits + (113u << 23)) - 0x1p-14f);
    const uint32 number = unsigned_bits < 0x400u << 13 ? subnormal : normal;
    return float_of(sign | (unsigned_bits >= 0x7C00u << 13 ? unsigned_bits | INFINITE : number));
}

// To nearest even.
LIONBITS_INLINE uint16 narrow_bfloat(float x) {
    const uint32 bits = bits_of(x);
    return uint16(x != x ? NOT_A_NUMBER >> 16 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// To nearest even.
LIONBITS_INLINE uint16 narrow_half(float x) {
    const uint32 sign = bits_of(x) >> 16 & 0x8000, bits = magnitude(x);
    const uint32 normal = (bits + 0xFFF + (bits >> 13 & 1) - (112u << 23)) >> 13;
    // below 2^-14: the last bit of 0.5 is what a subnormal counts in
    const uint32 subnormal = bits_of(float_of(bits < 0x38800000 ? bits : 0) + 0.5f) - bits_of(0.5f);
    const uint32 number = bits < 0x38800000 ? subnormal : bits < 0x477FF000 ? normal : 0x7C00;  // infinite from 65520
    return uint16(bits > INFINITE ? 0x7E00 : sign | number);
}

// float32 to the bits of a bfloat16: (bits + noise) >> 16; NaN stays NaN.
LIONBITS_INLINE uint16 narrow_unbiased(float x, uint32 noise) {
    return uint16(x != x ? NOT_A_NUMBER >> 16 : (bits_of(x) + noise) >> 16);
}

// p of a compensated bfloat16 parameter: its bits and the bits that were dropped, an int16 or, of 24, an int8.
LIONBITS_INLINE float join_master(uint16 stored, int32 residual, int up) {
    return float_of((uint32(stored) << 16) + (uint32(residual) << up));
}

// The nearest bfloat16 (ties away from zero) of x, and what it drops; with 24 bits in all, x is rounded to them first.
LIONBITS_INLINE uint16 split_master(float x, uint32 noise, bool of_24, uint32& residual) {
    uint32 bits = of_24 ? (bits_of(x) + (noise >> 8)) & 0xFFFFFF00 : bits_of(x);
    bits = x != x ? NOT_A_NUMBER : bits;
    const uint32 kept = (bits + 0x8000) >> 16;
    residual = uint32(int32(bits - (kept << 16)) >> (of_24 ? 8 : 0));
    return uint16(kept);
}
