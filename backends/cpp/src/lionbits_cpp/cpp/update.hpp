// The rule over the elements of a block: the update, and what may have to be known of all elements before one.

#pragma once

#include "passes.hpp"

struct Found {
    uint32 largest;  // the bits of the largest |m'|
    uint32 skips;    // elements that were skipped
};

// p' and m' in place of p and m. With SKIP an element stays as it is whose gradient or m' is not finite: 1-b2 is never
// zero, so m' tells of both. Without, `before` gets p.
template <int CAUTION, bool SKIP>
LIONBITS_PASS Found update(float* __restrict p, const float* __restrict g, float* __restrict m, float* __restrict before,
                           const Numbers& of, int count) {
    const Numbers n = of;
    uint32 largest = 0, skips = 0;
#pragma omp simd reduction(max : largest) reduction(+ : skips)
    for (int j = 0; j < count; ++j) {
        const float scaled = g[j] * n.grad_scale, old_p = p[j], old_m = m[j];
        const float moved = old_p * n.keep - move<CAUTION>(old_m, scaled, n);
        const float next = blend(old_m, scaled, n.b2, n.one_minus_b2);
        const bool applied = !SKIP || finite(next);
        const float new_m = applied ? next : old_m;
        if (!SKIP) before[j] = old_p;
        p[j] = applied ? moved : old_p;
        m[j] = new_m;
        skips += applied ? 0 : 1;
        const uint32 size = magnitude(new_m);
        largest = size > largest ? size : largest;
    }
    return {largest, skips};
}

LIONBITS_INLINE Found update(
    int caution, bool skip, float* p, const float* g, float* m, float* before, const Numbers& n, int count) {
    switch (caution * 2 + skip) {
        case NONE * 2: return update<NONE, false>(p, g, m, before, n, count);
        case NONE * 2 + 1: return update<NONE, true>(p, g, m, before, n, count);
        case MASK * 2: return update<MASK, false>(p, g, m, before, n, count);
        case MASK * 2 + 1: return update<MASK, true>(p, g, m, before, n, count);
        case GRADIENT * 2: return update<GRADIENT, false>(p, g, m, before, n, count);
        default: return update<GRADIENT, true>(p, g, m, before, n, count);
    }
}

// How many elements are not skipped and have a c and a g of the same sign.
LIONBITS_PASS uint64 count_aligned(
    const float* __restrict g, const float* __restrict m, const Numbers& of, bool skip, int count) {
    const Numbers n = of;
    uint32 aligned = 0;
#pragma omp simd reduction(+ : aligned)
    for (int j = 0; j < count; ++j) {
        const float scaled = g[j] * n.grad_scale;
        const bool applied = !skip || finite(blend(m[j], scaled, n.b2, n.one_minus_b2));
        aligned += applied && agree(blend(m[j], scaled, n.b1, n.one_minus_b1), scaled) ? 1 : 0;
    }
    return aligned;
}

// The bits of the largest |m'|; |m| where an element is skipped.
LIONBITS_PASS uint64 largest_momentum(
    const float* __restrict g, const float* __restrict m, const Numbers& of, bool skip, int count) {
    const Numbers n = of;
    uint32 largest = 0;
#pragma omp simd reduction(max : largest)
    for (int j = 0; j < count; ++j) {
        const float next = blend(m[j], g[j] * n.grad_scale, n.b2, n.one_minus_b2);
        const uint32 size = magnitude(skip && !finite(next) ? m[j] : next);
        largest = size > largest ? size : largest;
    }
    return largest;
}

// The bits of the largest |m|.
LIONBITS_PASS uint32 largest_of(const float* m, int count) {
    uint32 largest = 0;
#pragma omp simd reduction(max : largest)
    for (int j = 0; j < count; ++j) largest = magnitude(m[j]) > largest ? magnitude(m[j]) : largest;
    return largest;
}
