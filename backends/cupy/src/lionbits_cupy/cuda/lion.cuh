// Lion's arithmetic on elements: the plan, the rule, codes, rounding noise, 16-bit floats. No addresses here.
//
// Every written operation rounds once: the intrinsics (__fmul_rn and the like) are never contracted, and an
// option of the compiler keeps subnormal numbers. Bits are unsigned, so that shifts are logical and sums wrap.

#pragma once

using uint32 = unsigned int;
using int64 = long long;

enum Dtype { FLOAT32, BFLOAT16, FLOAT16 };
enum Caution { NONE, MASK, GRADIENT };
enum Rounding { NEAREST, DITHERED, STOCHASTIC, COMPENSATED };

// What a kernel specialises on: lionbits_reference.spec.Plan in numbers, in the order in which plan.py writes them.
struct Plan {
    int param_dtype, grad_dtype;    // Dtype
    int quantised;                  // whether momentum is in codes; else, what is said of those means nothing
    int bits, shift, largest_code;
    float top;
    int tensor_wise;
    int block;                      // elements of a row that share a scale, or that kernels take together
    int caution;                    // Caution
    int param_rounding;             // Rounding
    int master_bits;
    int skip;                       // whether elements are left alone that are not finite
};

#ifdef LIONBITS_PLAN  // a kernel of its own for the plan
__constant__ constexpr Plan PLAN = {LIONBITS_PLAN};
#else                 // on the CPU: one library for all plans, of which the host writes one before a launch
extern "C" {
Plan PLAN;
}
#endif

#define LIONBITS_DEVICE __device__ __forceinline__

constexpr uint32 STATE = 0, PARAMETER = 1;  // purposes of a salt

constexpr uint32 INFINITE = 0x7F800000;  // bits of |x| from here on are those of infinity or a NaN
constexpr uint32 SIGN = 0x80000000, NOT_A_NUMBER = 0x7FC00000;
constexpr float TINY = 0x1p-100f, HUGEST = 0x1p127f, UP = 0x1p127f, DOWN = 0x1p-127f;

LIONBITS_DEVICE uint32 bits_of(float x) { return __float_as_uint(x); }
LIONBITS_DEVICE float float_of(uint32 bits) { return __uint_as_float(bits); }

// --- the rule -------------------------------------------------------------------------------------------

struct Numbers {  // of a slot
    float lr, still;  // how far an element moves, and one that does not: lr * 0
    float keep, grad_scale, b1, one_minus_b1, b2, one_minus_b2;
};

// m*b + g*(1-b), three roundings.
LIONBITS_DEVICE float blend(float m, float g, float b, float one_minus_b) {
    return __fadd_rn(__fmul_rn(m, b), __fmul_rn(g, one_minus_b));
}

// Whether x > 0, as 1 or 0: x * infinity is infinite, or a NaN where x is 0 or one, and saturated a NaN is 0. One
// instruction of the GPU's float pipe, where a comparison would take the one for integers, which is the busier.
LIONBITS_DEVICE float positive(float x) { return __saturatef(__fmul_rn(x, float_of(INFINITE))); }

// lr * sign(x): the rate with x's sign, and lr * 0 for a zero and for a NaN.
LIONBITS_DEVICE float towards(const Numbers& n, float x) {
    return __fmul_rn(n.lr, __fsub_rn(positive(x), positive(-x)));
}

// Whether both have the same sign, and that is not zero.
LIONBITS_DEVICE bool agree(float x, float y) { return (x > 0 && y > 0) || (x < 0 && y < 0); }

// lr * u, u being the sign of c after caution. Signs are compared, not products, which can underflow.
LIONBITS_DEVICE float move(float m, float g, const Numbers& n) {
    const float c = blend(m, g, n.b1, n.one_minus_b1);
    if (PLAN.caution == MASK) return agree(c, g) ? towards(n, c) : n.still;
    if (PLAN.caution == GRADIENT) return towards(n, agree(c, -g) ? g : c);
    return towards(n, c);
}

// The bits of |x|: ordered like the numbers, infinity next to last, NaN last. The sum is exact, and keeps a NaN one: it
// takes the sign off in the float pipe, while a mask would take the one for integers.
LIONBITS_DEVICE uint32 magnitude(float x) { return bits_of(__fadd_rn(fabsf(x), 0.0f)); }

// --- codes ----------------------------------------------------------------------------------------------

// m of a code: the float with bits k << w, times 2^127, times the block's scale.
LIONBITS_DEVICE float decode(uint32 code, float scale) {
    const int top = int(code << (32 - PLAN.bits));  // the sign stands where a float has it
    const uint32 bits = uint32(top >> (32 - PLAN.bits - PLAN.shift)) & (SIGN | uint32(PLAN.largest_code) << PLAN.shift);
    return __fmul_rn(__fmul_rn(float_of(bits), UP), scale);
}

// The largest magnitude that codes are scaled for: min(absmax, 2^127), NaN where that is NaN.
LIONBITS_DEVICE float held(float absmax) { return absmax > HUGEST ? HUGEST : absmax; }

// x / top, rounded once: as a product, which is exact, where top is a power of two.
LIONBITS_DEVICE float divided_by_top(float x) {
    const bool power_of_two = (bits_of(PLAN.top) & 0x007FFFFF) == 0;
    return power_of_two ? __fmul_rn(x, 1 / PLAN.top) : __fdiv_rn(x, PLAN.top);
}

// absmax / top; 0 where a block holds nothing, NaN where it is not finite.
LIONBITS_DEVICE float block_scale(float absmax) {
    if (magnitude(absmax) >= INFINITE) return float_of(NOT_A_NUMBER);
    return absmax > TINY ? divided_by_top(held(absmax)) : 0.0f;
}

// r = top / absmax; 0 where a block holds nothing or is not finite.
LIONBITS_DEVICE float block_inverse(float absmax) {
    const bool usable = absmax > TINY && magnitude(absmax) < INFINITE;
    return usable ? __fdiv_rn(PLAN.top, held(absmax)) : 0.0f;
}

// The magnitude of a code: t = bits(|m| * r * 2^-127), k = min((t + dither) >> w, largest k). It is left in the highest
// bits, k << (32 - bits), above a fraction that pack drops; the noise is that of the momentum.
LIONBITS_DEVICE uint32 encode(float m, float inverse, uint32 noise) {
    const uint32 t = bits_of(__fmul_rn(__fmul_rn(fabsf(m), inverse), DOWN));
    const uint32 most = inverse > 0 ? ((PLAN.largest_code + 1u) << PLAN.shift) - 1 : 0;
    return min(t + noise, most) << (32 - PLAN.bits - PLAN.shift);
}

// --- rounding noise -------------------------------------------------------------------------------------

// MurmurHash3's 32-bit finalizer.
LIONBITS_DEVICE uint32 fmix32(uint32 h) {
    h = (h ^ h >> 16) * 0x85EBCA6B;
    h = (h ^ h >> 13) * 0xC2B2AE35;
    return h ^ h >> 16;
}

// What tells the noise of one parameter and purpose from all others.
LIONBITS_DEVICE uint32 salt(uint32 seed_low, uint32 seed_high, uint32 index, uint32 purpose) {
    const uint32 mixed = fmix32(fmix32(seed_low) ^ seed_high);
    return fmix32(fmix32(mixed ^ index) ^ purpose);
}

struct Dither {      // what the noise of a slot is made of
    uint32 salt;
    int up;         // how far they are shifted; so are the numbers below
    uint32 phase;   // how far the golden-ratio sequence of "dithered" has come
    uint32 drawn;   // 0xFFFF; 0 for "nearest"
    uint32 fixed;   // 0; half of what is dropped for "nearest"
};

// How far the noise of the momentum is shifted: its 16 bits are the highest of the w that a code drops.
LIONBITS_DEVICE int state_up() { return PLAN.shift - 16; }

// One code path for three roundings, which differ in numbers.
LIONBITS_DEVICE Dither dither_of(uint32 salted, uint32 step, int rounding, int up) {
    if (rounding == STOCHASTIC) return {fmix32(salted ^ step * 0x9E3779B9), up, 0, 0xFFFFu << up, 0};
    if (rounding == NEAREST) return {salted, up, 0, 0, 0x8000u << up};
    return {salted, up, step * 40503 << up, 0xFFFFu << up, 0};
}

LIONBITS_DEVICE uint32 even_noise(uint32 h, const Dither& dither) {
    return (((h << dither.up) + dither.phase) & dither.drawn) | dither.fixed;
}

LIONBITS_DEVICE uint32 odd_noise(uint32 h, const Dither& dither) {
    return (((h >> 16 << dither.up) + dither.phase) & dither.drawn) | dither.fixed;
}

// --- 16-bit floats --------------------------------------------------------------------------------------

// float32 of a stored number's bits.
LIONBITS_DEVICE float widen(uint32 stored, int dtype) {
    if (dtype == FLOAT32) return float_of(stored);
    if (dtype == BFLOAT16) return float_of(stored << 16);
    const uint32 sign = (stored & 0x8000) << 16, unsigned_bits = (stored & 0x7FFF) << 13;
    if (unsigned_bits >= 0x7C00 << 13) return float_of(sign | unsigned_bits | INFINITE);
    return float_of(sign | bits_of(__fmul_rn(float_of(unsigned_bits), 0x1p112f)));
}

// float16 bits of a float32, to nearest even.
LIONBITS_DEVICE uint32 narrow_half(float x) {
    const uint32 sign = bits_of(x) >> 16 & 0x8000, bits = magnitude(x);
    if (bits > INFINITE) return 0x7E00;
    if (bits >= 0x477FF000) return sign | 0x7C00;  // from 65520 on
    if (bits < 0x38800000)                         // below 2^-14: the last bit of 0.5 is what a subnormal counts in
        return sign | (bits_of(__fadd_rn(float_of(bits), 0.5f)) - bits_of(0.5f));
    return sign | (bits + 0xFFF + (bits >> 13 & 1) - (112u << 23)) >> 13;
}

// The inverse of widen, rounded once to nearest even.
LIONBITS_DEVICE uint32 narrow(float x, int dtype) {
    const uint32 bits = bits_of(x);
    if (dtype == FLOAT32) return bits;
    if (dtype == FLOAT16) return narrow_half(x);
    return x != x ? NOT_A_NUMBER >> 16 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

// float32 to the bits of a bfloat16: (bits + noise) >> 16; NaN stays NaN.
LIONBITS_DEVICE uint32 narrow_unbiased(float x, uint32 noise) {
    return x != x ? NOT_A_NUMBER >> 16 : (bits_of(x) + noise) >> 16;
}

// Whether parameters are rounded by noise.
LIONBITS_DEVICE bool param_draws() {
    if (PLAN.param_rounding == COMPENSATED) return PLAN.master_bits == 24;
    return PLAN.param_rounding != NEAREST;
}

// p of a compensated bfloat16 parameter, from its bits and those of the residual, an int16 or int8.
LIONBITS_DEVICE float join_master(uint32 stored, uint32 residual) {
    const uint32 dropped = PLAN.master_bits == 24 ? uint32((signed char)residual) << 8 : uint32((short)residual);
    return float_of((stored << 16) + dropped);
}

// The nearest bfloat16 (ties away from zero), and the bits of what it drops.
LIONBITS_DEVICE uint32 split_master(float x, uint32 noise, uint32& residual) {
    uint32 bits = bits_of(x);
    if (PLAN.master_bits == 24) bits = (bits + (noise >> 8)) & 0xFFFFFF00;
    if (x != x) bits = NOT_A_NUMBER;
    const uint32 kept = (bits + 0x8000) >> 16;
    residual = bits - (kept << 16);
    if (PLAN.master_bits == 24) residual >>= 8;
    residual &= PLAN.master_bits == 24 ? 0xFF : 0xFFFF;
    return kept & 0xFFFF;
}
