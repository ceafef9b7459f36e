// Lion as CUDA kernels: one launch for all slots of a plan. A thread group takes item after item of the table.

#include "access.cuh"

// --- items ----------------------------------------------------------------------------------------------

struct ThreadGroups {  // the thread group of this thread, and how many there are
    int64 mine, all;
};

LIONBITS_DEVICE ThreadGroups thread_groups() {
    const int here = blockDim.x / thread_group();  // one, if it is more than a warp
    return {int64(blockIdx.x) * here + threadIdx.x / thread_group(), int64(gridDim.x) * here};
}

// Blocks that a thread group takes at a time.
LIONBITS_DEVICE int tile_blocks() { return thread_group() * SPAN / PLAN.block; }

// Whether the item takes the fast path.
LIONBITS_DEVICE bool is_even(const Slot& slot, const Call& call, const Item& item) {
    return call.even && item.last <= slot.even_blocks;
}

LIONBITS_DEVICE Numbers numbers(
    float lr, float keep, float grad_scale, float b1, float one_minus_b1, float b2, float one_minus_b2) {
    return {lr, __fmul_rn(lr, 0.0f), keep, grad_scale, b1, one_minus_b1, b2, one_minus_b2};
}

// --- a step ---------------------------------------------------------------------------------------------

// Update the thread's part of a tile; how many of its elements were skipped comes back.
template <bool EVEN>
LIONBITS_DEVICE uint32 step_tile(
    const Slot& slot, int64 grad, const Tile& tile, const Numbers& n, const Dither& state, const Dither& param,
    float absmax) {
    float p[SPAN], g[SPAN], m[SPAN];
    load_param<EVEN>(p, slot, tile);
    load_grad<EVEN>(g, slot, grad, tile);
    load_momentum<EVEN>(m, slot, tile);
    uint32 largest = 0, skips = 0;
    for (int j = 0; j < SPAN; ++j) {
        const float scaled = __fmul_rn(g[j], n.grad_scale);
        p[j] = __fsub_rn(__fmul_rn(p[j], n.keep), move(m[j], scaled, n));
        m[j] = blend(m[j], scaled, n.b2, n.one_minus_b2);
        // a factor that is not finite makes a NaN of what is not there
        if (PLAN.skip || j < tile.count) largest = max(largest, magnitude(m[j]));
    }
    if (tile.count == 0) largest = 0;
    if (PLAN.skip && largest >= INFINITE) {  // rare: what was read is read again, so that nobody has to keep it
        float old_p[SPAN], old_m[SPAN];
        load_param<EVEN>(old_p, slot, tile);
        load_momentum<EVEN>(old_m, slot, tile);
        largest = 0;
        for (int j = 0; j < SPAN; ++j) {
            if (magnitude(m[j]) >= INFINITE) {
                p[j] = old_p[j], m[j] = old_m[j];
                skips += j < tile.count;
            }
            largest = max(largest, magnitude(m[j]));
        }
    }
    store_param<EVEN>(p, param, slot, tile);
    if (!PLAN.quantised) {
        store_plain<EVEN>(m, slot, tile);
        return skips;
    }
    uint32 noise[SPAN];
    draw<EVEN>(noise, state, slot, tile);
    store_momentum<EVEN>(m, PLAN.tensor_wise ? absmax : float_of(block_max(largest)), noise, slot, tile);
    return skips;
}

// Update the blocks of one item.
template <bool EVEN>
LIONBITS_DEVICE uint32 step_item(
    const Slot& slot, int64 grad, const Item& item, const Numbers& n, const Dither& state, const Dither& param,
    float absmax) {
    uint32 skips = 0;
    for (int first = int(item.first); first < item.last; first += tile_blocks())
        skips += step_tile<EVEN>(slot, grad, tile_at<EVEN>(slot, first, int(item.last)), n, state, param, absmax);
    return skips;
}

// Update every element of every slot, once.
extern "C" __global__ void step_kernel(
    const Slot* table, const Call* calls, const Item* items, int64 count, const float* lr, const float* keep,
    const float* grad_scale, const int64* step, const float* absmax, unsigned long long* skipped, float b1,
    float one_minus_b1, float b2, float one_minus_b2, uint32 seed_low, uint32 seed_high, int rounding) {
    const ThreadGroups here = thread_groups();
    uint32 skips = 0;
    for (int64 i = here.mine; i < count; i += here.all) {
        const Item item = items[i];
        const int64 j = item.slot;
        const Slot slot = table[j];
        const Call call = calls[j];
        const Numbers n = numbers(lr[j], keep[j], grad_scale[j], b1, one_minus_b1, b2, one_minus_b2);
        const uint32 index = uint32(slot.index), updates = uint32(step[j]);
        const Dither state = dither_of(salt(seed_low, seed_high, index, STATE), updates, rounding, state_up());
        const int drawn = PLAN.param_rounding == STOCHASTIC ? STOCHASTIC : DITHERED;
        const Dither param = dither_of(salt(seed_low, seed_high, index, PARAMETER), updates, drawn, 0);
        skips += is_even(slot, call, item) ? step_item<true>(slot, call.grad, item, n, state, param, absmax[j])
                                           : step_item<false>(slot, call.grad, item, n, state, param, absmax[j]);
    }
    if (PLAN.skip) {
        skips = warp_sum(skips);
        if (threadIdx.x % WARP == 0 && skips > 0) atomicAdd(skipped, (unsigned long long)skips);
    }
}

// --- what may have to come before a step ----------------------------------------------------------------

// Of the thread's elements of one item: how many are aligned and not skipped, or the bits of the largest |m'|.
template <bool EVEN>
LIONBITS_DEVICE uint32 count_item(const Slot& slot, int64 grad, const Item& item, const Numbers& n, bool aligned) {
    uint32 found = 0;
    for (int first = int(item.first); first < item.last; first += tile_blocks()) {
        const Tile tile = tile_at<EVEN>(slot, first, int(item.last));
        float g[SPAN], m[SPAN];
        load_grad<EVEN>(g, slot, grad, tile);
        load_momentum<EVEN>(m, slot, tile);
        for (int j = 0; j < SPAN; ++j) {
            if (j >= tile.count) continue;
            const float scaled = __fmul_rn(g[j], n.grad_scale);
            const uint32 advanced = magnitude(blend(m[j], scaled, n.b2, n.one_minus_b2));
            const bool skipped = PLAN.skip && advanced >= INFINITE;
            if (aligned) {
                found += !skipped && agree(blend(m[j], scaled, n.b1, n.one_minus_b1), scaled);
            } else {
                found = max(found, skipped ? magnitude(m[j]) : advanced);
            }
        }
    }
    return found;
}

// Per slot: how many elements are aligned (int64), or the bits of the largest |m'| (int32).
extern "C" __global__ void count_kernel(
    const Slot* table, const Call* calls, const Item* items, int64 count, const float* grad_scale, int64 found,
    float b1, float one_minus_b1, float b2, float one_minus_b2, int aligned) {
    const ThreadGroups here = thread_groups();
    for (int64 i = here.mine; i < count; i += here.all) {
        const Item item = items[i];
        const int64 j = item.slot;
        const Slot slot = table[j];
        const Call call = calls[j];
        const Numbers n = numbers(0, 0, grad_scale[j], b1, one_minus_b1, b2, one_minus_b2);
        const uint32 mine = is_even(slot, call, item) ? count_item<true>(slot, call.grad, item, n, aligned)
                                                      : count_item<false>(slot, call.grad, item, n, aligned);
        const uint32 ours = aligned ? warp_sum(mine) : warp_max(mine);
        if (threadIdx.x % WARP != 0) continue;
        if (aligned) {
            atomicAdd(at<unsigned long long>(found, j), (unsigned long long)ours);
        } else {
            atomicMax(at<uint32>(found, j), ours);
        }
    }
}

// --- the codec ------------------------------------------------------------------------------------------

// Encodes a contiguous float32 momentum, passed as gradients, to nearest. If it is read through strides here,
// NVRTC 13.0 never ends.
extern "C" __global__ void encode_kernel(
    const Slot* table, const Call* calls, const Item* items, int64 count, const float* absmax) {
    const ThreadGroups here = thread_groups();
    for (int64 i = here.mine; i < count; i += here.all) {
        const Item item = items[i];
        const Slot slot = table[item.slot];
        for (int first = int(item.first); first < item.last; first += tile_blocks()) {
            const Tile tile = tile_at<false>(slot, first, int(item.last));
            float m[SPAN];
            load_numbers<false>(m, calls[item.slot].grad, FLOAT32, state_places(slot, tile), tile.count);
            uint32 largest = 0, noise[SPAN];
            for (int j = 0; j < SPAN; ++j) largest = max(largest, magnitude(m[j])), noise[j] = 0x8000u << state_up();
            const float scaled_for = PLAN.tensor_wise ? *absmax : float_of(block_max(largest));
            store_momentum<false>(m, scaled_for, noise, slot, tile);
            if (PLAN.tensor_wise && tile.block == 0 && tile.column == 0)
                *scale_address(slot, tile) = block_scale(scaled_for);
        }
    }
}

// float32 momentum, into where parameters stand, contiguous.
extern "C" __global__ void decode_kernel(const Slot* table, const Call* calls, const Item* items, int64 count) {
    const ThreadGroups here = thread_groups();
    for (int64 i = here.mine; i < count; i += here.all) {
        const Item item = items[i];
        const Slot slot = table[item.slot];
        for (int first = int(item.first); first < item.last; first += tile_blocks()) {
            const Tile tile = tile_at<false>(slot, first, int(item.last));
            float m[SPAN];
            uint32 stored[SPAN];
            load_momentum<false>(m, slot, tile);
            for (int j = 0; j < SPAN; ++j) stored[j] = bits_of(m[j]);
            store_numbers<false>(stored, slot.param, FLOAT32, state_places(slot, tile), tile.count);
        }
    }
}
