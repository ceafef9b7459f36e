// Loads and stores of a thread's part of a tile: parameter, gradient, momentum, as float32 whatever they are held in.

#pragma once

#include "tiles.cuh"

// --- rounding noise -------------------------------------------------------------------------------------

// 0..65535 for each element, shifted as the dither says; elements 2i and 2i + 1 of a row share a hash.
template <bool EVEN>
LIONBITS_DEVICE void draw(uint32 (&noise)[SPAN], const Dither& dither, const Slot& slot, const Tile& tile) {
    const int64 first = (slot.start + tile.row * slot.pitch + tile.column) >> 1;
    const uint32 low = uint32(first), high = uint32(first >> 32);
    const uint32 mixed = fmix32((EVEN ? uint32(slot.start >> 33) : high) ^ dither.salt);  // the table sees to even tiles
    const uint32 carried = EVEN ? mixed : fmix32((high + 1) ^ dither.salt);
    for (int i = 0; i < SPAN / 2; ++i) {
        const uint32 h = fmix32((low + i) ^ (low + i < low ? carried : mixed));
        noise[2 * i] = even_noise(h, dither);
        noise[2 * i + 1] = odd_noise(h, dither);
    }
}

// --- the parameter and its gradient ---------------------------------------------------------------------

// Off the fast path, 0 where there is no element.
template <bool EVEN>
LIONBITS_DEVICE void load_numbers(float (&x)[SPAN], int64 address, int dtype, const Places& where, int count) {
    uint32 stored[SPAN] = {};
    if (dtype == FLOAT32) {
        load_bits<EVEN, 32>(stored, address, where, count);
    } else {
        load_bits<EVEN, 16>(stored, address, where, count);
    }
    for (int j = 0; j < SPAN; ++j) x[j] = widen(stored[j], dtype);
}

// Of bits that are ready to be stored.
template <bool EVEN>
LIONBITS_DEVICE void store_numbers(
    const uint32 (&stored)[SPAN], int64 address, int dtype, const Places& where, int count) {
    if (dtype == FLOAT32) {
        store_bits<EVEN, 32>(stored, address, where, count);
    } else {
        store_bits<EVEN, 16>(stored, address, where, count);
    }
}

// The gradient, not scaled.
template <bool EVEN>
LIONBITS_DEVICE void load_grad(float (&g)[SPAN], const Slot& slot, int64 grad, const Tile& tile) {
    load_numbers<EVEN>(g, grad, PLAN.grad_dtype, places<EVEN>(slot, tile, grad_strides(slot)), tile.count);
}

// p, whole where the state has what bfloat16 drops.
template <bool EVEN>
LIONBITS_DEVICE void load_param(float (&p)[SPAN], const Slot& slot, const Tile& tile) {
    load_numbers<EVEN>(p, slot.param, PLAN.param_dtype, places<EVEN>(slot, tile, param_strides(slot)), tile.count);
    if (PLAN.param_rounding != COMPENSATED) return;
    uint32 residual[SPAN] = {};
    if (PLAN.master_bits == 24) {
        load_bits<EVEN, 8>(residual, slot.residual, state_places(slot, tile), tile.count);
    } else {
        load_bits<EVEN, 16>(residual, slot.residual, state_places(slot, tile), tile.count);
    }
    for (int j = 0; j < SPAN; ++j) p[j] = join_master(bits_of(p[j]) >> 16, residual[j]);
}

// p', rounded once, and what that drops where the state has a place for it.
template <bool EVEN>
LIONBITS_DEVICE void store_param(const float (&p)[SPAN], const Dither& dither, const Slot& slot, const Tile& tile) {
    uint32 stored[SPAN], residual[SPAN], noise[SPAN] = {};
    if (param_draws()) draw<EVEN>(noise, dither, slot, tile);
    for (int j = 0; j < SPAN; ++j) {
        if (PLAN.param_rounding == NEAREST) {
            stored[j] = narrow(p[j], PLAN.param_dtype);
        } else if (PLAN.param_rounding == COMPENSATED) {
            stored[j] = split_master(p[j], noise[j], residual[j]);
        } else {
            stored[j] = narrow_unbiased(p[j], noise[j]);
        }
    }
    const Places where = places<EVEN>(slot, tile, param_strides(slot));
    store_numbers<EVEN>(stored, slot.param, PLAN.param_dtype, where, tile.count);
    if (PLAN.param_rounding != COMPENSATED) return;
    if (PLAN.master_bits == 24) {
        store_bits<EVEN, 8>(residual, slot.residual, state_places(slot, tile), tile.count);
    } else {
        store_bits<EVEN, 16>(residual, slot.residual, state_places(slot, tile), tile.count);
    }
}

// --- momentum -------------------------------------------------------------------------------------------

// Whole bytes of codes, of which a thread has few.
LIONBITS_DEVICE int code_bytes(int count) { return (count * PLAN.bits + 7) / 8; }

template <bool EVEN>
LIONBITS_DEVICE void load_codes(uint32 (&code)[SPAN], const Slot& slot, const Tile& tile) {
    const int64 address = code_address(slot, tile);
    if (EVEN) {
        if (PLAN.bits == 8) load_packed<8>(code, address);
        if (PLAN.bits == 4) load_packed<4>(code, address);
        if (PLAN.bits == 2) load_packed<2>(code, address);
    } else {
        uint32 bytes[SPAN] = {};
        load_bits<EVEN, 8>(bytes, address, consecutive(0), code_bytes(tile.count));
        for (int j = 0; j < SPAN; ++j)
            code[j] = bytes[j * PLAN.bits / 8] >> j * PLAN.bits % 8 & ((1 << PLAN.bits) - 1);
    }
}

// Words of codes: magnitudes k, as encode leaves them, and the signs of m where k > 0, found for all fields of a word
// at once. Each shift brings in the highest bits of one element more, the last of a word first.
template <int BITS>
LIONBITS_DEVICE void pack(uint32 (&words)[SPAN * BITS / 32], const uint32 (&k)[SPAN], const float (&m)[SPAN]) {
    constexpr int PER_WORD = 32 / BITS;
    constexpr uint32 LOWEST = 0xFFFFFFFF / ((1u << BITS) - 1), SIGNS = LOWEST << (BITS - 1), REST = SIGNS - LOWEST;
    for (int i = 0; i < SPAN / PER_WORD; ++i) {
        uint32 magnitudes = 0, signs = 0;
        for (int j = PER_WORD - 1; j >= 0; --j) {
            magnitudes = __funnelshift_l(k[i * PER_WORD + j], magnitudes, BITS);
            signs = __funnelshift_l(bits_of(m[i * PER_WORD + j]), signs, BITS);
        }
        words[i] = magnitudes | (SIGNS & signs & (magnitudes + REST));  // no carry: k + (2^(BITS-1) - 1) < 2^BITS
    }
}

template <bool EVEN, int BITS>
LIONBITS_DEVICE void store_packed_codes(
    const uint32 (&k)[SPAN], const float (&m)[SPAN], const Slot& slot, const Tile& tile) {
    uint32 words[SPAN * BITS / 32];
    pack<BITS>(words, k, m);
    const int64 address = code_address(slot, tile);
    if (EVEN) {
        if (tile.count > 0) store_words(words, address);
    } else {
        for (int j = 0; j < SPAN * BITS / 8; ++j)
            if (j < code_bytes(tile.count)) store_one<8>(words[j / 4] >> j % 4 * 8, address, j);
    }
}

template <bool EVEN>
LIONBITS_DEVICE void load_momentum(float (&m)[SPAN], const Slot& slot, const Tile& tile) {
    if (!PLAN.quantised) {
        load_numbers<EVEN>(m, slot.momentum, FLOAT32, state_places(slot, tile), tile.count);
        return;
    }
    uint32 code[SPAN] = {};
    load_codes<EVEN>(code, slot, tile);
    const float scale = EVEN || tile.count > 0 ? *scale_address(slot, tile) : 0.0f;
    for (int j = 0; j < SPAN; ++j) m[j] = decode(code[j], scale);
}

// m as it is.
template <bool EVEN>
LIONBITS_DEVICE void store_plain(const float (&m)[SPAN], const Slot& slot, const Tile& tile) {
    uint32 stored[SPAN];
    for (int j = 0; j < SPAN; ++j) stored[j] = bits_of(m[j]);
    store_bits<EVEN, 32>(stored, slot.momentum, state_places(slot, tile), tile.count);
}

// m as codes of blocks with these largest magnitudes. A tensor-wise scale is left to the caller.
template <bool EVEN>
LIONBITS_DEVICE void store_momentum(
    const float (&m)[SPAN], float absmax, const uint32 (&noise)[SPAN], const Slot& slot, const Tile& tile) {
    const float inverse = block_inverse(absmax);
    uint32 k[SPAN];
    for (int j = 0; j < SPAN; ++j) k[j] = encode(m[j], inverse, noise[j]);
    if (PLAN.bits == 8) store_packed_codes<EVEN, 8>(k, m, slot, tile);
    if (PLAN.bits == 4) store_packed_codes<EVEN, 4>(k, m, slot, tile);
    if (PLAN.bits == 2) store_packed_codes<EVEN, 2>(k, m, slot, tile);
    if (!PLAN.tensor_wise && tile.count > 0 && tile.column % PLAN.block == 0)
        *scale_address(slot, tile) = block_scale(absmax);
}
