// The slot table, as lionbits_table writes it, and how a slot's elements are walked: in chunks of whole blocks of a row.

#pragma once

#include "lion.hpp"

// What a call specialises on: lionbits_reference.spec.Plan in numbers, in the order of source.py.
struct Plan {
    int32 param_dtype, grad_dtype;  // Dtype
    int32 quantised;                // whether momentum is in codes; else what is said of those means nothing
    Format format;
    int32 tensor_wise;
    int32 block;  // elements of a row that share a scale, or that are taken together
    int32 caution, param_rounding;
    int32 master_bits;
    int32 skip;  // whether elements that are not finite are left alone
};

// A row of the table: the fields of lionbits_table.Record. Strides are in elements, of rows and of three dimensions
// inside a row; inner and middle are the sizes of the two inner ones. inner = 0: columns are consecutive.
struct Slot {
    int64 param, momentum, scale, residual;  // addresses
    int64 columns, row_blocks, even_blocks;
    int64 index, start, pitch;
    int64 param_strides[4], grad_strides[4];
    int64 middle, inner;
};

struct Call {  // what may differ between two calls: the gradient's address
    int64 grad, even;
};

struct Item {  // blocks of a slot
    int64 slot, first, last;
};

constexpr int CHUNK = 1024;    // elements that are worked on at a time, unless a block has more
constexpr int LARGEST = 4096;  // elements of the largest block
constexpr int VECTOR = 16;     // buffers are filled up to multiples of this, so that loops over them have no remainder

constexpr int padded(int count) { return (count + VECTOR - 1) / VECTOR * VECTOR; }

template <class T>
LIONBITS_INLINE T* at(int64 address, int64 element = 0) {
    return reinterpret_cast<T*>(address) + element;
}

struct Chunk {  // of a row
    int64 row, column;
    int64 block;  // number of its first block in the slot
    int count;    // elements
};

// The chunk that begins with a block; it ends with the row or before `last`.
LIONBITS_INLINE Chunk chunk_at(const Plan& plan, const Slot& slot, int64 block, int64 last) {
    const int64 row = block / slot.row_blocks, in_row = block - row * slot.row_blocks, column = in_row * plan.block;
    int64 blocks = plan.block < CHUNK ? CHUNK / plan.block : 1;
    if (blocks > slot.row_blocks - in_row) blocks = slot.row_blocks - in_row;
    if (blocks > last - block) blocks = last - block;
    const int64 left = slot.columns - column, wanted = blocks * plan.block;
    return {row, column, block, int(left < wanted ? left : wanted)};
}

LIONBITS_INLINE int64 blocks_of(const Plan& plan, const Chunk& chunk) {
    return (chunk.count + plan.block - 1) / plan.block;
}

// Calls `visit(i, first, count)` for each block of a chunk: its number, first element and elements.
template <class Visit>
LIONBITS_INLINE void each_block(const Plan& plan, const Chunk& chunk, Visit visit) {
    for (int first = 0, i = 0; first < chunk.count; first += plan.block, ++i)
        visit(i, first, chunk.count - first < plan.block ? chunk.count - first : plan.block);
}

// In state of the parameter's shape, which is contiguous.
LIONBITS_INLINE int64 state_element(const Slot& slot, const Chunk& chunk) {
    return chunk.row * slot.columns + chunk.column;
}

// Packed codes; rows begin at whole bytes.
LIONBITS_INLINE uint8* codes_of(const Plan& plan, const Slot& slot, const Chunk& chunk) {
    const int64 bits = plan.format.bits;
    return at<uint8>(slot.momentum, chunk.row * ((slot.columns * bits + 7) / 8) + chunk.column * bits / 8);
}

LIONBITS_INLINE float* scale_of(const Plan& plan, const Slot& slot, int64 block) {
    return at<float>(slot.scale, plan.tensor_wise ? 0 : block);
}

// Calls `visit(j, element)` for each of a chunk's elements, `element` counted from the beginning of a tensor.
template <class Visit>
LIONBITS_INLINE void each(const Slot& slot, const Chunk& chunk, const int64 (&strides)[4], Visit visit) {
    const int64 row = chunk.row * strides[0];
    if (slot.inner == 0) {
        for (int j = 0; j < chunk.count; ++j) visit(j, row + chunk.column + j);
        return;
    }
    int64 outer = chunk.column / slot.inner, in = chunk.column % slot.inner;
    int64 middle = outer % slot.middle;
    outer /= slot.middle;
    for (int j = 0; j < chunk.count;) {
        const int64 first = row + outer * strides[1] + middle * strides[2];
        for (; in < slot.inner && j < chunk.count; ++in, ++j) visit(j, first + in * strides[3]);
        in = 0;
        if (++middle == slot.middle) middle = 0, ++outer;
    }
}
