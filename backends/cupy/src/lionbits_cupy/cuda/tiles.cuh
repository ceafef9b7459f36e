// Where elements lie, and how they come and go: from (slot, blocks) to addresses, vectors and packed bytes.
//
// A thread has SPAN consecutive elements of a block, so that a thread group has whole blocks: a tile. On an even
// tile it moves 16 bytes at a time; the other path serves tails, misaligned views and any strides, one by one.

#pragma once

#include "lion.cuh"

constexpr int SPAN = 16;
constexpr int WARP = 32;
constexpr int LARGEST_CREW = 4096 / SPAN;

// A row of the device table: the fields of lionbits_table.Record. Strides are in elements.
struct Slot {
    int64 param, momentum, scale, residual;  // addresses
    int64 columns, row_blocks, even_blocks;
    int64 index, start, pitch;
    int64 param_row, param_outer, param_middle, param_inner;
    int64 grad_row, grad_outer, grad_middle, grad_inner;
    int64 middle, inner;  // sizes of the two inner dimensions; inner = 0: columns are consecutive in both tensors
};

struct Call {  // what may differ between two calls: the gradient's address, and whether it is aligned
    int64 grad, even;
};

struct Item {  // blocks of a slot, for one thread group
    int64 slot, first, last;
};

struct Tile {  // of a thread
    uint32 row;    // of its first element
    int64 column;
    int block;     // number of its block in the slot
    int count;     // how many elements there are: 0..SPAN, 0 or SPAN on an even tile
};

struct Strides {
    int64 row, outer, middle, inner;
};

// --- thread groups ----------------------------------------------------------------------------------------------

// Threads that share the largest momentum of a tile's blocks: a warp, or all of a thread block.
LIONBITS_DEVICE int thread_group() { return PLAN.block / SPAN > WARP ? PLAN.block / SPAN : WARP; }

// Over the threads of a block of elements; every thread of the thread group has to come.
LIONBITS_DEVICE uint32 block_max(uint32 value) {
    const int threads = PLAN.block / SPAN;
    for (int offset = 1; offset < WARP && offset < threads; offset *= 2)
        value = max(value, __shfl_xor_sync(0xFFFFFFFF, value, offset));
    if (threads > WARP) {
        __shared__ uint32 of_warp[LARGEST_CREW / WARP];
        if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = value;
        __syncthreads();
        for (int i = 0; i < threads / WARP; ++i) value = max(value, of_warp[i]);
        __syncthreads();  // before the next tile writes there
    }
    return value;
}

LIONBITS_DEVICE uint32 warp_sum(uint32 value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xFFFFFFFF, value, offset);
    return value;
}

LIONBITS_DEVICE uint32 warp_max(uint32 value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(0xFFFFFFFF, value, offset));
    return value;
}

// --- where elements lie ---------------------------------------------------------------------------------

// A pointer into global memory. The table holds addresses as integers, and the compiler needs their address space.
template <class T>
LIONBITS_DEVICE T* at(int64 address, int64 element = 0) {
    return (T*)__cvta_global_to_generic(size_t(address)) + element;
}

// This thread's part of the thread group's tile that begins with block `first`; blocks from `last` on have no elements. On an
// even tile, a thread without elements reads those of the slot's beginning, so that no load waits for a branch.
template <bool EVEN>
LIONBITS_DEVICE Tile tile_at(const Slot& slot, int first, int last) {
    const int element = threadIdx.x % thread_group() * SPAN;
    const int block = first + element / PLAN.block;
    const uint32 row = slot.row_blocks < last ? block / int(slot.row_blocks) : 0;  // large tensors are mostly one row
    const int64 column = int64(block - int(row * slot.row_blocks)) * PLAN.block + element % PLAN.block;
    const int64 left = slot.columns - column;
    const bool there = block < last && left > 0;
    if (EVEN) return there ? Tile{row, column, block, SPAN} : Tile{};
    return {row, column, block, !there ? 0 : left < SPAN ? int(left) : SPAN};
}

LIONBITS_DEVICE Strides param_strides(const Slot& s) {
    return {s.param_row, s.param_outer, s.param_middle, s.param_inner};
}

LIONBITS_DEVICE Strides grad_strides(const Slot& s) {
    return {s.grad_row, s.grad_outer, s.grad_middle, s.grad_inner};
}

// Where the thread's elements are, counted from the beginning of a tensor.
struct Places {
    int64 first;
    int column, inner, middle;  // of the first; sizes of the two inner dimensions, or inner = 0: one follows the other
    Strides strides;

    LIONBITS_DEVICE int64 operator[](int j) const {
        if (inner == 0) return first + j;
        const int outer_index = (column + j) / inner;
        return first + outer_index / middle * strides.outer + outer_index % middle * strides.middle +
               (column + j) % inner * strides.inner;
    }
};

LIONBITS_DEVICE Places consecutive(int64 first) { return {first, 0, 0, 0, {}}; }

template <bool EVEN>
LIONBITS_DEVICE Places places(const Slot& slot, const Tile& tile, const Strides& strides) {
    const int64 row = tile.row * strides.row;
    if (EVEN || slot.inner == 0) return consecutive(row + tile.column);
    return {row, int(tile.column), int(slot.inner), int(slot.middle), strides};
}

// In state of the parameter's shape, which is contiguous.
LIONBITS_DEVICE Places state_places(const Slot& slot, const Tile& tile) {
    return consecutive(tile.row * slot.columns + tile.column);
}

// Where the thread's packed codes are. Rows begin at whole bytes.
LIONBITS_DEVICE int64 code_address(const Slot& slot, const Tile& tile) {
    return slot.momentum + tile.row * (slot.columns * PLAN.bits + 7 >> 3) + (tile.column * PLAN.bits >> 3);
}

LIONBITS_DEVICE float* scale_address(const Slot& slot, const Tile& tile) {
    return at<float>(slot.scale, PLAN.tensor_wise ? 0 : tile.block);
}

// --- words ----------------------------------------------------------------------------------------------

// WORDS words of 32 bits, 16 bytes at a time.
template <int WORDS>
LIONBITS_DEVICE void load_words(uint32 (&words)[WORDS], int64 address) {
    if constexpr (WORDS >= 4) {
        for (int i = 0; i < WORDS / 4; ++i) {
            const uint4 v = *at<const uint4>(address, i);
            words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
        }
    } else if constexpr (WORDS == 2) {
        const uint2 v = *at<const uint2>(address);
        words[0] = v.x, words[1] = v.y;
    } else {
        words[0] = *at<const uint32>(address);
    }
}

template <int WORDS>
LIONBITS_DEVICE void store_words(const uint32 (&words)[WORDS], int64 address) {
    if constexpr (WORDS >= 4) {
        for (int i = 0; i < WORDS / 4; ++i)
            *at<uint4>(address, i) = {words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]};
    } else if constexpr (WORDS == 2) {
        *at<uint2>(address) = {words[0], words[1]};
    } else {
        *at<uint32>(address) = words[0];
    }
}

// Bits of the thread's elements, BITS wide each, element 0 in the lowest: as they lie in memory.
template <int BITS>
LIONBITS_DEVICE void load_packed(uint32 (&values)[SPAN], int64 address) {
    constexpr int PER_WORD = 32 / BITS;
    uint32 words[SPAN / PER_WORD];
    load_words(words, address);
    for (int j = 0; j < SPAN; ++j)
        values[j] = BITS == 32 ? words[j] : words[j / PER_WORD] >> j % PER_WORD * BITS & ((1ull << BITS) - 1);
}

template <int BITS>
LIONBITS_DEVICE void store_packed(const uint32 (&values)[SPAN], int64 address) {
    constexpr int PER_WORD = 32 / BITS;
    uint32 words[SPAN / PER_WORD] = {};
    for (int j = 0; j < SPAN; ++j) words[j / PER_WORD] |= values[j] << j % PER_WORD * BITS;
    store_words(words, address);
}

template <int BITS>
LIONBITS_DEVICE uint32 load_one(int64 address, int64 element) {
    if (BITS == 8) return *at<const unsigned char>(address, element);
    if (BITS == 16) return *at<const unsigned short>(address, element);
    return *at<const uint32>(address, element);
}

template <int BITS>
LIONBITS_DEVICE void store_one(uint32 value, int64 address, int64 element) {
    if (BITS == 8) *at<unsigned char>(address, element) = (unsigned char)value;
    if (BITS == 16) *at<unsigned short>(address, element) = (unsigned short)value;
    if (BITS == 32) *at<uint32>(address, element) = value;
}

// The bits of the thread's `count` elements. For others, an even tile gives whatever it finds; the other path, nothing.
template <bool EVEN, int BITS>
LIONBITS_DEVICE void load_bits(uint32 (&values)[SPAN], int64 address, const Places& where, int count) {
    if (EVEN) {
        load_packed<BITS>(values, address + where.first * (BITS / 8));
    } else {
        for (int j = 0; j < SPAN; ++j)
            if (j < count) values[j] = load_one<BITS>(address, where[j]);
    }
}

template <bool EVEN, int BITS>
LIONBITS_DEVICE void store_bits(const uint32 (&values)[SPAN], int64 address, const Places& where, int count) {
    if (EVEN) {
        if (count > 0) store_packed<BITS>(values, address + where.first * (BITS / 8));
    } else {
        for (int j = 0; j < SPAN; ++j)
            if (j < count) store_one<BITS>(values[j], address, where[j]);
    }
}
