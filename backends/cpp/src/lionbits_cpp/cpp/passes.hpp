// Passes over the elements of a chunk, each a short loop over arrays that stay in the first-level cache. What is in
// memory as float32, one element after the other, is worked on where it is; anything else goes through a buffer.

#pragma once

#include "table.hpp"

#define LIONBITS_PASS static __attribute__((noinline))

struct alignas(64) Buffers {
    float p[LARGEST], g[LARGEST], m[LARGEST], before[LARGEST];
    uint16 stored[LARGEST];
    uint16 noise[LARGEST];
    uint8 codes[LARGEST];
    uint32 wide[LARGEST];
};

// --- 16-bit and strided numbers ---------------------------------------------------------------------------

template <class T>
LIONBITS_PASS void gather(T* to, const Slot& slot, const Chunk& chunk, int64 address, const int64 (&strides)[4]) {
    const T* from = at<const T>(address);
    each(slot, chunk, strides, [=](int j, int64 element) { to[j] = from[element]; });
}

template <class T>
LIONBITS_PASS void scatter(const T* from, const Slot& slot, const Chunk& chunk, int64 address, const int64 (&strides)[4]) {
    T* to = at<T>(address);
    each(slot, chunk, strides, [=](int j, int64 element) { to[element] = from[j]; });
}

LIONBITS_PASS void widen(float* __restrict x, const uint16* __restrict stored, int dtype, int count) {
    if (dtype == BFLOAT16) {
#pragma omp simd
        for (int j = 0; j < count; ++j) x[j] = widen_bfloat(stored[j]);
    } else {
#pragma omp simd
        for (int j = 0; j < count; ++j) x[j] = widen_half(stored[j]);
    }
}

LIONBITS_PASS void narrow(uint16* __restrict stored, const float* __restrict x, int dtype, int count) {
    if (dtype == BFLOAT16) {
#pragma omp simd
        for (int j = 0; j < count; ++j) stored[j] = narrow_bfloat(x[j]);
    } else {
#pragma omp simd
        for (int j = 0; j < count; ++j) stored[j] = narrow_half(x[j]);
    }
}

// A chunk's elements of a tensor as stored in 16 bits: where they are, or gathered.
LIONBITS_INLINE const uint16* stored_bits(
    Buffers& b, const Slot& slot, const Chunk& chunk, int64 address, const int64 (&strides)[4]) {
    if (slot.inner == 0) return at<const uint16>(address, chunk.row * strides[0] + chunk.column);
    gather<uint16>(b.stored, slot, chunk, address, strides);
    return b.stored;
}

// The numbers of a chunk, as float32: where they are, or in a buffer.
LIONBITS_INLINE float* numbers(Buffers& b, float* buffer, int dtype, const Slot& slot, const Chunk& chunk, int64 address,
                               const int64 (&strides)[4]) {
    if (dtype == FLOAT32 && slot.inner == 0) return at<float>(address, chunk.row * strides[0] + chunk.column);
    if (dtype == FLOAT32) {
        gather<float>(buffer, slot, chunk, address, strides);
    } else {
        widen(buffer, stored_bits(b, slot, chunk, address, strides), dtype, chunk.count);
    }
    return buffer;
}

// --- rounding noise ---------------------------------------------------------------------------------------

// 0..65535 for each element; elements 2i and 2i + 1 of a row share a hash, whose halves they are.
LIONBITS_PASS void draw(uint16* __restrict noise, const Dither& dither, const Slot& slot, const Chunk& chunk) {
    const int pairs = padded(chunk.count) / 2;
    if (dither.rounding == NEAREST) {
        for (int j = 0; j < 2 * pairs; ++j) noise[j] = 0x8000;
        return;
    }
    const uint64 first = uint64(slot.start + chunk.row * slot.pitch + chunk.column) >> 1;
    const uint32 low = uint32(first), high = uint32(first >> 32), salted = dither.salt, phase = dither.phase;
    const uint32 spread = fmix32(high ^ salted);
    if (low > 0xFFFFFFFF - uint32(pairs)) {  // the upper half of a position changes within the chunk
        const uint32 carried = fmix32((high + 1) ^ salted);
        for (int i = 0; i < pairs; ++i) {
            const uint32 h = fmix32((low + uint32(i)) ^ (low + uint32(i) < low ? carried : spread));
            noise[2 * i] = uint16(h + phase), noise[2 * i + 1] = uint16((h >> 16) + phase);
        }
        return;
    }
    for (int i = 0; i < pairs; ++i) {
        const uint32 h = fmix32((low + uint32(i)) ^ spread);
        std::memcpy(noise + 2 * i, &h, sizeof h);  // the lower half comes first in memory
    }
    for (int j = 0; j < 2 * pairs; ++j) noise[j] = uint16(noise[j] + phase);
}

// --- the parameter ----------------------------------------------------------------------------------------

LIONBITS_PASS void join(float* __restrict p, const uint16* __restrict stored, int64 address, bool of_24, int count) {
    if (of_24) {
        const signed char* __restrict residual = at<signed char>(address);
#pragma omp simd
        for (int j = 0; j < count; ++j) p[j] = join_master(stored[j], residual[j], 8);
    } else {
        const std::int16_t* __restrict residual = at<std::int16_t>(address);
#pragma omp simd
        for (int j = 0; j < count; ++j) p[j] = join_master(stored[j], residual[j], 0);
    }
}

LIONBITS_PASS void split(uint16* __restrict stored, uint32* __restrict residual, const float* __restrict p,
                         const uint16* __restrict noise, bool of_24, int count) {
    if (of_24) {
#pragma omp simd
        for (int j = 0; j < count; ++j)
            stored[j] = split_master(p[j], noise[j], true, residual[j]);
    } else {
#pragma omp simd
        for (int j = 0; j < count; ++j) stored[j] = split_master(p[j], 0, false, residual[j]);
    }
}

LIONBITS_PASS void narrow_by_noise(uint16* __restrict stored, const float* __restrict p,
                                   const uint16* __restrict noise, int count) {
#pragma omp simd
    for (int j = 0; j < count; ++j) stored[j] = narrow_unbiased(p[j], noise[j]);
}

template <class T>
LIONBITS_PASS void keep_residual(int64 address, const uint32* residual, int count) {
    T* to = at<T>(address);
    for (int j = 0; j < count; ++j) to[j] = T(int32(residual[j]));
}

// p as float32, whole where the state has what bfloat16 drops.
LIONBITS_INLINE float* load_param(Buffers& b, const Plan& plan, const Slot& slot, const Chunk& chunk) {
    if (plan.param_rounding != COMPENSATED)
        return numbers(b, b.p, plan.param_dtype, slot, chunk, slot.param, slot.param_strides);
    const bool of_24 = plan.master_bits == 24;
    const int64 residual = slot.residual + state_element(slot, chunk) * (of_24 ? 1 : 2);
    join(b.p, stored_bits(b, slot, chunk, slot.param, slot.param_strides), residual, of_24, chunk.count);
    return b.p;
}

// p', rounded once, and what that drops where the state has a place for it. Nothing where p was worked on in place.
LIONBITS_INLINE void store_param(
    Buffers& b, const float* p, const Plan& plan, const Slot& slot, const Chunk& chunk, const Dither& dither) {
    if (plan.param_dtype == FLOAT32) {
        if (slot.inner != 0) scatter<float>(p, slot, chunk, slot.param, slot.param_strides);
        return;
    }
    const bool in_place = slot.inner == 0, of_24 = plan.master_bits == 24;
    uint16* stored = in_place ? at<uint16>(slot.param, chunk.row * slot.param_strides[0] + chunk.column) : b.stored;
    if (plan.param_rounding == NEAREST) {
        narrow(stored, p, plan.param_dtype, chunk.count);
    } else {
        if (plan.param_rounding != COMPENSATED || of_24) draw(b.noise, dither, slot, chunk);
        if (plan.param_rounding == COMPENSATED) {
            split(stored, b.wide, p, b.noise, of_24, chunk.count);
            const int64 element = state_element(slot, chunk);
            if (of_24) keep_residual<signed char>(slot.residual + element, b.wide, chunk.count);
            if (!of_24) keep_residual<std::int16_t>(slot.residual + 2 * element, b.wide, chunk.count);
        } else {
            narrow_by_noise(stored, p, b.noise, chunk.count);
        }
    }
    if (!in_place) scatter<uint16>(stored, slot, chunk, slot.param, slot.param_strides);
}

// --- momentum ---------------------------------------------------------------------------------------------

// Codes one a byte, in its highest bits. In memory those of a byte lie in order, the first in the lowest bits.
LIONBITS_PASS void unpack(uint8* __restrict codes, const uint8* __restrict packed, int bits, int bytes) {
    if (bits == 4) {
        for (int i = 0; i < bytes; ++i) {
            const uint16 two = uint16((packed[i] & 0x0F) << 4 | (packed[i] & 0xF0) << 8);
            std::memcpy(codes + 2 * i, &two, sizeof two);
        }
    } else {
        for (int i = 0; i < bytes; ++i) {
            const uint32 byte = packed[i];
            const uint32 four = (byte & 0x03) << 6 | (byte & 0x0C) << 12 | (byte & 0x30) << 18 | (byte & 0xC0) << 24;
            std::memcpy(codes + 4 * i, &four, sizeof four);
        }
    }
}

// Of codes one a byte, in its lowest bits.
LIONBITS_PASS void pack(uint8* __restrict packed, const uint8* __restrict codes, int bits, int bytes) {
    if (bits == 4) {
        for (int i = 0; i < bytes; ++i) {
            uint16 two;
            std::memcpy(&two, codes + 2 * i, sizeof two);
            packed[i] = uint8(two | two >> 4);
        }
    } else {
        for (int i = 0; i < bytes; ++i) {
            uint32 four;
            std::memcpy(&four, codes + 4 * i, sizeof four);
            packed[i] = uint8(four | four >> 6 | four >> 12 | four >> 18);
        }
    }
}

LIONBITS_PASS void decode(float* __restrict m, const uint8* __restrict codes, float scale, const Format& of, int count) {
    const Format format = of;
#pragma omp simd
    for (int j = 0; j < count; ++j) m[j] = value(codes[j], format) * scale;
}

// In 32 bits each, as all vectors are then of one width.
LIONBITS_PASS void encode_all(uint32* __restrict wide, const float* __restrict m, const uint16* __restrict noise,
                                const Block& of, const Format& with, int count) {
    const Block block = of;
    const Format format = with;
#pragma omp simd
    for (int j = 0; j < count; ++j) wide[j] = encode(m[j], block, noise[j], format);
}

LIONBITS_PASS void lowest_bytes(uint8* __restrict bytes, const uint32* __restrict words, int count) {
#pragma omp simd
    for (int j = 0; j < count; ++j) bytes[j] = uint8(words[j]);
}

// The codes of a chunk, one a byte: where they are, or unpacked into a buffer. Null where there are none.
LIONBITS_INLINE const uint8* load_codes(Buffers& b, const Plan& plan, const Slot& slot, const Chunk& chunk) {
    if (!plan.quantised) return nullptr;
    const uint8* packed = codes_of(plan, slot, chunk);
    if (plan.format.bits == 8) return packed;
    unpack(b.codes, packed, plan.format.bits, (chunk.count * plan.format.bits + 7) / 8);
    return b.codes;
}

// The momentum of a chunk, as float32: where it is, or decoded into a buffer.
LIONBITS_INLINE float* load_momentum(
    Buffers& b, const uint8* codes, const Plan& plan, const Slot& slot, const Chunk& chunk) {
    if (!plan.quantised) return at<float>(slot.momentum, state_element(slot, chunk));
    each_block(plan, chunk, [&](int i, int first, int count) {
        decode(b.m + first, codes + first, *scale_of(plan, slot, chunk.block + i), plan.format, count);
    });
    return b.m;
}

// m as codes of blocks with these largest magnitudes, by the chunk's noise. A tensor-wise scale is left to the caller.
LIONBITS_INLINE void store_momentum(
    Buffers& b, const float* m, const float* absmax, const Plan& plan, const Slot& slot, const Chunk& chunk) {
    each_block(plan, chunk, [&](int i, int first, int count) {
        const Block block = block_of(absmax[plan.tensor_wise ? 0 : i], plan.format);
        encode_all(b.wide + first, m + first, b.noise + first, block, plan.format, count);
        if (!plan.tensor_wise) *scale_of(plan, slot, chunk.block + i) = block.scale;
    });
    uint8* packed = codes_of(plan, slot, chunk);
    lowest_bytes(plan.format.bits == 8 ? packed : b.codes, b.wide, chunk.count);
    if (plan.format.bits == 8) return;
    const int per_byte = 8 / plan.format.bits, bytes = (chunk.count + per_byte - 1) / per_byte;
    for (int j = chunk.count; j < bytes * per_byte; ++j) b.codes[j] = 0;
    pack(packed, b.codes, plan.format.bits, bytes);
}
